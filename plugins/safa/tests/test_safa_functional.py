"""SAFA's functions against slow references, figures worked out by hand, and their properties."""

import math

import numpy as np
import pytest
import torch
from ltcore_safa.functional import (
    channel_statistics,
    contrastive_loss,
    delta_cycle_loss,
    feature_cycle_loss,
    mode_seeking_loss,
    same_class,
    translate,
)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_translate_by_hand():
    delta, features = rows(3, 2, 4, 4), rows(3, 2, 4, 4, seed=1)

    def delta_generator(both):
        assert torch.equal(both[:, :2], delta) and torch.equal(both[:, 2:], features)
        return 10 * both[:, :2]

    whole = translate(delta, features, delta_generator, lambda x: x + 1, added=False)
    torch.testing.assert_close(whole, 10 * delta + features + 1)
    added = translate(delta, features, delta_generator, lambda x: x + 1, added=True)
    torch.testing.assert_close(added, 10 * delta + 2 * features + 1)


def test_channel_statistics_are_the_loop():
    features = rows(4, 3, 2, 5) * torch.tensor([1e-3, 1.0, 40.0]).double()[:, None, None] + 7
    mean, deviation = channel_statistics(features.requires_grad_())
    assert mean.shape == deviation.shape == (1, 3, 1, 1) and not (mean.requires_grad or deviation.requires_grad)
    root_mean_square = math.sqrt((features.detach().numpy() ** 2).mean())
    for channel in range(3):
        values = features.detach().numpy()[:, channel]
        assert mean[0, channel].item() == pytest.approx(values.mean())
        assert deviation[0, channel].item() == pytest.approx(max(values.std(), 0.01 * root_mean_square))
    assert deviation[0, 0] > 10 * features[:, 0].std()  # the floor
    assert channel_statistics(torch.zeros(2, 3, 1, 1))[1].min() > 0


def test_the_cycle_losses_are_the_loops():
    a, b = rows(4, 3, 2, 5), rows(4, 3, 2, 5, seed=1)
    delta, feature = 0.0, 0.0
    for x, y in zip(a.numpy(), b.numpy(), strict=True):
        delta += math.sqrt(sum((p - q) ** 2 for p, q in zip(x.flat, y.flat, strict=True))) / 30 / 4
        feature += sum((p - q) ** 2 for p, q in zip(x.flat, y.flat, strict=True)) / 30 / 4
    assert delta_cycle_loss(a, b, even=False).item() == pytest.approx(delta, rel=1e-12)
    assert delta_cycle_loss(a, b, even=True).item() == pytest.approx(delta * math.sqrt(30), rel=1e-12)
    assert feature_cycle_loss(a, b).item() == pytest.approx(feature, rel=1e-12)


def test_the_delta_cycle_has_a_gradient_where_it_is_zero():
    a = rows(2, 3, 2, 2).requires_grad_()
    loss = delta_cycle_loss(a, a.detach().clone(), even=False)
    loss.backward()
    assert loss == 0 and torch.equal(a.grad, torch.zeros_like(a))


def test_even_halves_do_not_depend_on_the_size_of_the_maps_and_printed_ones_do():
    a, b = rows(4, 3, 2, 2), rows(4, 3, 2, 2, seed=1)
    large = [x.repeat(1, 1, 2, 2) for x in (a, b)]
    torch.testing.assert_close(delta_cycle_loss(*large, even=True), delta_cycle_loss(a, b, even=True))
    torch.testing.assert_close(2 * delta_cycle_loss(*large, even=False), delta_cycle_loss(a, b, even=False))


def test_mode_seeking_is_the_loop():
    first, second, generated, other = (rows(4, 3, 2, 2, seed=seed) for seed in range(4))
    expected = np.mean(
        [
            np.abs(first[m].numpy() - second[m].numpy()).mean()
            / (np.abs(generated[m].numpy() - other[m].numpy()).mean() + 0.01)
            for m in range(4)
        ]
    )
    assert mode_seeking_loss(first, second, generated, other, 0.01, True).item() == pytest.approx(expected, rel=1e-12)


def test_mode_seeking_falls_as_generated_features_move_apart():
    first, second, generated, direction = (rows(4, 3, 2, 2, seed=seed) for seed in range(4))
    losses = [
        mode_seeking_loss(first, second, generated, generated + s * direction, 1e-3, False).item() for s in (0, 0.5, 1)
    ]
    assert losses[0] > losses[1] > losses[2] > 0
    bound = (first - second).abs().mean() / 1e-3  # where they agree, epsilon bounds it
    assert losses[0] == pytest.approx(bound.item())
    other = generated + 0.5 * direction
    other.requires_grad_()
    mode_seeking_loss(first, second, generated, other, 1e-3, False).backward()
    assert (other.grad * direction).sum() < 0  # a step against the gradient moves further apart


def test_a_constant_numerator_has_no_gradient_and_the_same_value():
    values, gradients = [], []
    for constant in (True, False):
        parts = [rows(4, 3, 2, 2, seed=seed).requires_grad_() for seed in range(4)]
        loss = mode_seeking_loss(*parts, 0.01, constant)
        loss.backward()
        values.append(loss.item())
        gradients.append([part.grad for part in parts])
    assert values[0] == values[1]
    assert gradients[0][0] is None and gradients[0][1] is None
    assert gradients[1][0].abs().sum() > 0 and torch.equal(gradients[0][2], gradients[1][2])


def test_mode_seeking_does_not_depend_on_the_size_of_the_maps():
    parts = [rows(4, 3, 2, 2, seed=seed) for seed in range(4)]
    large = [part.repeat(1, 2, 3, 5) for part in parts]
    torch.testing.assert_close(mode_seeking_loss(*large, 0.01, False), mode_seeking_loss(*parts, 0.01, False))


def test_the_contrastive_loss_is_the_loop():
    logits, same = rows(6), torch.tensor([1.0, 0.0, 0.0, 1.0, 0.25, 1.0])
    expected = 0.0
    for z, y in zip(logits.tolist(), same.tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        expected -= (y * math.log(p) + (1 - y) * math.log(1 - p)) / 6
    assert contrastive_loss(logits, same).item() == pytest.approx(expected, rel=1e-12)


def test_same_class_of_hard_labels():
    targets = torch.tensor([4, 1, 4, 2, 1])
    same = same_class(torch.tensor([0, 1, 3]), torch.tensor([2, 4, 0]), targets)
    assert same.dtype == torch.float32 and same.tolist() == [1, 1, 0]


def test_same_class_of_mixed_labels_is_the_chance_to_agree():
    generator = torch.Generator().manual_seed(0)
    targets, partners = torch.randint(3, (2, 8), generator=generator)
    weight = torch.rand(8, generator=generator)
    first, second = torch.randint(8, (2, 40), generator=generator)
    shares = torch.zeros(8, 3)
    for row in range(8):
        shares[row, targets[row]] += weight[row]
        shares[row, partners[row]] += 1 - weight[row]
    torch.testing.assert_close(
        same_class(first, second, targets, partners, weight), (shares[first] * shares[second]).sum(1)
    )
    one = torch.ones(8)  # a share of 1 is a hard label
    assert torch.equal(same_class(first, second, targets, partners, one), same_class(first, second, targets))


def test_reduced_precision_is_raised():
    a, b = rows(2, 3, 2, 2).bfloat16(), rows(2, 3, 2, 2, seed=1).bfloat16()
    losses = [delta_cycle_loss(a, b, True), feature_cycle_loss(a, b), mode_seeking_loss(a, b, b, a, 1e-3, True)]
    losses.append(contrastive_loss(rows(4).bfloat16(), torch.ones(4)))
    assert {loss.dtype for loss in losses} == {torch.float32}
    assert feature_cycle_loss(a, b) == feature_cycle_loss(a.float(), b.float())
