"""M2m's functions, against loops, exact probabilities and figures of the published code."""

import numpy as np
import pytest
import torch
from ltcore_m2m import draw_pairs, replacement_chances, seed_chances, start, translate
from scipy.special import softmax

COUNTS = torch.tensor([60, 30, 30, 8, 2])


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.95, 0.9999])
def test_chances_are_the_equations(beta):
    replaced, chances = replacement_chances(COUNTS), seed_chances(COUNTS, beta)
    for k, rare in enumerate(COUNTS.tolist()):
        assert replaced[k] == pytest.approx(1 - rare / 60)
        for k0, frequent in enumerate(COUNTS.tolist()):
            assert chances[k, k0] == pytest.approx(1 - beta ** max(0, frequent - rare), abs=1e-12)


def test_seeds_of_the_published_code():
    found = seed_chances(torch.tensor([60, 30, 8]), 0.95)
    figures = torch.tensor([[0, 0, 0], [0.785361, 0, 0], [0.930557, 0.676467, 0]])
    torch.testing.assert_close(found.float(), figures, atol=1e-6, rtol=0)


def test_pairs_come_as_often_as_the_algorithm_says():
    """Row i is paired with seed j with probability r_i * (P_ij / sum_j P_ij) * P_ij."""
    targets, draws = torch.tensor([3, 0, 1, 4, 2, 0, 4]), 6000
    replaced, chances, generator = replacement_chances(COUNTS), seed_chances(COUNTS, 0.97), torch.Generator()
    generator.manual_seed(0)
    seen = np.zeros((7, 7))
    for _ in range(draws):
        pairs = draw_pairs(targets, replaced, chances, generator)
        assert len(set(pairs.rows.tolist())) == len(pairs.rows)
        np.add.at(seen, (pairs.rows.numpy(), pairs.seeds.numpy()), 1)
    p = chances.numpy()[np.ix_(targets, targets)]
    total = np.maximum(p.sum(1, keepdims=True), 1e-300)
    expected = replaced.numpy()[targets][:, None] * p / total * p
    assert (np.abs(seen / draws - expected) < 5 * np.sqrt(expected / draws) + 1e-12).all()
    assert expected.sum() > 2


@pytest.mark.parametrize("targets", [[], [0, 0, 0], [4, 4, 4, 4]])
def test_a_batch_without_seeds_stays_as_it_is(targets):
    pairs = draw_pairs(torch.tensor(targets, dtype=torch.int64), *chances_of(0.5), torch.Generator())
    assert pairs.rows.tolist() == pairs.seeds.tolist() == []


def chances_of(beta):
    return replacement_chances(COUNTS), seed_chances(COUNTS, beta)


def test_a_translation_begins_within_the_noise():
    torch.manual_seed(0)
    images, uniform = torch.rand(6, 3, 5, 4), torch.rand(6, 3, 5, 4)
    moved = start(images, uniform, 0.5)
    assert 0 <= moved.min() and moved.max() <= 1
    for channel in range(3):
        noise = (uniform[:, channel] - 0.5).numpy()
        noise *= min(1, 0.5 / np.linalg.norm(noise))
        expected = np.clip(images[:, channel].numpy() + noise, 0, 1)
        np.testing.assert_allclose(moved[:, channel].numpy(), expected, atol=1e-6)
    assert torch.equal(start(images, uniform, 0.0), images)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_translation_is_a_loop_over_images(strength):
    """Of linear networks, whose gradient is written out: W_g (softmax - one-hot) + lambda W_f[:, k0]."""
    rng = np.random.default_rng(1)
    images, g, f = rng.random((4, 2, 3, 3)), rng.normal(size=(18, 5)), rng.normal(size=(18, 5))
    targets, seeds = np.array([0, 4, 2, 1]), np.array([1, 0, 3, 2])
    expected = []
    for image, k, k0 in zip(images, targets, seeds, strict=True):
        x = image.reshape(-1).copy()
        for _ in range(7):
            gradient = g @ (softmax(x @ g) - np.eye(5)[k]) + strength * f[:, k0]
            x = np.clip(x - 0.2 * gradient / np.linalg.norm(gradient), 0, 1)
        expected.append(x.reshape(2, 3, 3))
    found = translate(
        torch.from_numpy(images),
        torch.from_numpy(targets),
        torch.from_numpy(seeds),
        lambda x: x.flatten(1) @ torch.from_numpy(g),
        lambda x: x.flatten(1) @ torch.from_numpy(f),
        strength=strength,
        step=0.2,
        steps=7,
    )
    assert not found.requires_grad
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-9)


def test_a_translation_of_the_published_code():
    """What its `generation` gave for the same images, noise and networks."""

    def pattern(shape, pace):
        return torch.sin(torch.arange(float(np.prod(shape))) * pace).reshape(shape)

    mean, std = torch.tensor([0.4, 0.5])[:, None, None], torch.tensor([0.2, 0.3])[:, None, None]

    def network(pace):
        weight = pattern((32, 3), pace)
        return lambda x: torch.tanh(((x - mean) / std).flatten(1) @ weight / 4) * 4

    images, noise = ((pattern((5, 2, 4, 4), pace) + 1) / 2 for pace in (1.7, 2.3))
    targets, seeds = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([1, 2, 0, 0, 2])
    made = translate(start(images, noise, 0.5), targets, seeds, network(0.9), network(1.3), 0.5, 0.1, 10)
    sums = torch.tensor([16.218678, 15.701506, 15.920790, 16.797867, 15.944489])
    torch.testing.assert_close(made.sum((1, 2, 3)), sums, atol=2e-4, rtol=0)
    values = torch.tensor([0.963304, 0.221707, 0.437450, 1.0, 0.150657])
    torch.testing.assert_close(made[:, 1, 2, 3], values, atol=1e-4, rtol=0)
    sure = network(0.9)(made).softmax(1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(
        sure, torch.tensor([0.996649, 0.524379, 0.995659, 0.522623, 0.994041]), atol=1e-4, rtol=0
    )
