"""Equations 5 to 10 against NumPy in float64, and the draws' exact covariance."""

import numpy as np
import pytest
import torch
from ltcore_glag import calibrated_means, descend, deviations, feature_bank, gaussians, ladder, support_set

COUNTS = torch.tensor([6, 4, 1, 3, 12])


def made(counts=COUNTS, dim=5, seed=0, dtype=torch.float64):
    """Shuffled features and targets."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.repeat_interleave(torch.arange(len(counts)), counts)
    targets = targets[torch.randperm(len(targets), generator=generator)]
    features = torch.rand(len(targets), dim, generator=generator, dtype=torch.float64) * (1 + targets[:, None])
    return features.to(dtype), targets


def statistics(x, targets, classes=5):
    """Equations 5 and 6, class by class."""
    means, covariances = [], []
    for c in range(classes):
        rows = x[targets == c]
        means.append(rows.mean(0))
        centred = rows - means[-1]
        covariances.append(sum(np.outer(r, r) for r in centred) / max(len(rows) - 1, 1))
    return np.array(means), np.array(covariances)


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0, 2.0])
def test_the_ladder_and_back(power):
    x = torch.rand(50, dtype=torch.float64) * 4 + 0.01
    expected = np.log(x.numpy()) if power == 0 else x.numpy() ** power
    np.testing.assert_allclose(ladder(x, power).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(descend(ladder(x, power), power).numpy(), x.numpy(), rtol=1e-12)


def test_the_ladder_clamps_what_it_cannot_take():
    x = torch.tensor([-2.0, 0.0, 4.0])
    assert ladder(x, 0.5).tolist() == [0, 0, 2] and ladder(x, 1.0).tolist() == x.tolist()
    assert ladder(x, 0.0)[:2].exp().tolist() == pytest.approx([gaussians.SMALLEST] * 2)
    assert descend(torch.tensor([-1.0, 3.0]), 0.5).tolist() == [0, 9]


@pytest.mark.parametrize("values_at_once", [5, 2**23])
def test_the_bank_has_equations_5_and_6(monkeypatch, values_at_once):
    monkeypatch.setattr(gaussians, "_VALUES_AT_ONCE", values_at_once)
    features, targets = made()
    bank = feature_bank(features, targets, COUNTS, 0.5)
    means, covariances = statistics(np.sqrt(features.numpy()), targets.numpy())
    np.testing.assert_allclose(bank.means.numpy(), means, rtol=1e-6)
    for c, (start, count) in enumerate(zip(bank.start.tolist(), COUNTS.tolist(), strict=True)):
        rows = bank.centred[start : start + count].numpy()
        np.testing.assert_allclose(rows.T @ rows / max(count - 1, 1), covariances[c], rtol=1e-10, atol=1e-15)
    assert features.equal(made()[0])


@pytest.mark.parametrize("neighbours", [1, 2, 3])
def test_the_support_set_is_equations_7_and_10(neighbours):
    features, targets = made()
    bank = feature_bank(features, targets, COUNTS, 0.5)
    x = ladder(features, 0.5)
    classes, weights = support_set(x.float(), targets, bank, neighbours)
    means, _ = statistics(x.numpy(), targets.numpy())
    for i, y in enumerate(targets.tolist()):
        distance = {k: np.linalg.norm(x[i].numpy() - means[k]) for k in range(5) if COUNTS[k] > COUNTS[y]}
        nearest = sorted(distance, key=distance.get)[:neighbours]
        omega = [COUNTS[k].item() / distance[k] for k in nearest]
        found = [k for k, w in zip(classes[i].tolist(), weights[i].tolist(), strict=True) if w > 0]
        assert found == nearest
        np.testing.assert_allclose(weights[i, : len(nearest)], np.array(omega) / (sum(omega) or 1), rtol=1e-4)
    assert weights[targets == 4].sum() == 0  # no class is larger
    assert (weights[targets == 0] > 0).sum(1).eq(1).all()  # only one is


def test_a_sample_on_a_class_mean_has_finite_weights():
    features, targets = made()
    bank = feature_bank(features, targets, COUNTS, 1.0)
    _, weights = support_set(bank.means[[4, 4]], torch.tensor([2, 3]), bank, 2)
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert (weights[:, 0] > 0.99).all()


def exact_factor(bank, classes, scale, uniform):
    """The linear map from the normals to the draw, [J * m, D]: its rows' outer products are the covariance."""
    normals = uniform[0].numel()
    unit = torch.eye(normals, dtype=torch.float64).reshape(normals, *uniform.shape[1:])
    every = (t.expand(normals, *t.shape[1:]) for t in (classes, scale, uniform))
    classes, scale, uniform = every
    return deviations(bank, classes, scale, unit, uniform).numpy()


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_draws_have_exactly_the_covariance_of_equation_9(power):
    """With m above the largest count nothing is random but the normals, and the draw is linear in them."""
    features, targets = made()
    bank = feature_bank(features, targets, COUNTS, power)
    x = ladder(features, power)
    means, covariances = statistics(x.numpy(), targets.numpy())
    beta = 0.6
    for i in [int((targets == c).nonzero()[0]) for c in range(4)]:  # the largest class is no tail
        y = targets[i : i + 1]
        classes, weights = support_set(x[i : i + 1].float(), y, bank, 2)
        weights = weights.double()
        scale = torch.cat([torch.tensor([[1 - beta]], dtype=torch.float64), beta * weights.sqrt()], 1)
        uniform = torch.rand(1, 3, 12, dtype=torch.float64)
        factor = exact_factor(bank, torch.cat([y[:, None], classes], 1), scale, uniform)
        omega = weights[0].numpy()
        expected = (1 - beta) ** 2 * covariances[y] + beta**2 * sum(
            w * covariances[c] for w, c in zip(omega, classes[0].tolist(), strict=True)
        )
        np.testing.assert_allclose(factor.T @ factor, expected[0] if expected.ndim == 3 else expected, atol=1e-12)
        mean = calibrated_means(x[i : i + 1], torch.tensor([beta]).double(), torch.tensor(means)[classes], weights)
        by_hand = (1 - beta) * x[i].numpy() + beta * sum(
            w * means[c] for w, c in zip(omega, classes[0].tolist(), strict=True)
        )
        np.testing.assert_allclose(mean[0].numpy(), by_hand, rtol=1e-6)


def test_a_class_of_more_images_has_its_covariance_over_the_choices_of_images():
    """12 images in 4 parts of 3: the mean over every choice is the whole class's covariance, exactly."""
    features, targets = made()
    bank = feature_bank(features, targets, COUNTS, 1.0)
    _, covariances = statistics(features.numpy(), targets.numpy())
    classes, scale = torch.tensor([[4]]), torch.ones(1, 1, dtype=torch.float64)
    total = 0
    for u in [1 / 6, 3 / 6, 5 / 6]:  # each part's first, second and third image
        factor = exact_factor(bank, classes, scale, torch.full((1, 1, 4), u, dtype=torch.float64))
        assert not np.allclose(factor.T @ factor, covariances[4])
        total = total + factor.T @ factor / 3
    np.testing.assert_allclose(total, covariances[4], rtol=1e-10)


def test_every_image_of_a_large_class_is_chosen_equally_often_where_the_parts_are_uneven():
    """7 images in 3 parts."""
    counts = torch.tensor([7])
    bank = feature_bank(torch.eye(7, dtype=torch.float64), torch.zeros(7, dtype=torch.int64), counts, 1.0)
    uniform = ((torch.arange(700, dtype=torch.float64) + 0.5) / 700)[:, None, None].expand(700, 1, 3)
    total = torch.zeros(7, 7, dtype=torch.float64)
    one = torch.zeros(700, 1, dtype=torch.int64)
    for k in range(3):
        normal = torch.zeros(700, 1, 3, dtype=torch.float64)
        normal[:, 0, k] = 1
        drawn = deviations(bank, one, torch.ones(700, 1, dtype=torch.float64), normal, uniform)
        total += drawn.T @ drawn / 700
    np.testing.assert_allclose(total.numpy(), np.cov(np.eye(7), rowvar=False), atol=1e-10)


@pytest.mark.parametrize("m", [2, 32])
def test_a_class_with_one_image_does_not_deviate(m):
    features, targets = made()
    bank = feature_bank(features, targets, COUNTS, 0.5)
    drawn = deviations(bank, torch.tensor([[2]]), torch.ones(1, 1), torch.randn(1, 1, m), torch.rand(1, 1, m))
    assert drawn.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_many_draws_have_the_mean_and_covariance_of_numpy(dtype):
    counts = torch.tensor([40, 9])
    features, targets = made(counts, dim=3, dtype=dtype)
    bank = feature_bank(features, targets, counts, 0.5)
    generator = torch.Generator().manual_seed(0)
    for c in range(2):
        shape = (40000, 1, 16)  # less than 40, more than 9
        normal, uniform = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)
        classes = torch.full((40000, 1), c)
        drawn = deviations(bank, classes, torch.ones(40000, 1), normal, uniform).double().numpy()
        expected = np.cov(np.sqrt(features[targets == c].double().numpy()), rowvar=False)
        np.testing.assert_allclose(np.cov(drawn, rowvar=False), expected, atol=0.03 * expected.max())
        np.testing.assert_allclose(drawn.mean(0), 0, atol=0.02 * expected.max() ** 0.5)
