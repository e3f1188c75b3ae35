"""The augmented logits and the running statistics against loops, sampling and NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ltcore_isda import ClassStatistics, augmented_logits, balanced_draw, margins, seen_features, updated
from torch import nn
from torch.nn import functional as F

C, D = 3, 4


def case(seed, rows=6):
    generator = torch.Generator().manual_seed(seed)
    features, weight, roots = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in [(rows, D), (C, D), (C, D, D)]
    )
    return features, torch.arange(rows) % C, weight, roots @ roots.mT / D


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_augmented_logits_are_what_is_printed(kind):
    features, targets, weight, covariance = case(0)
    logits = features @ weight.T
    kept = covariance if kind == "full" else covariance.diagonal(dim1=1, dim2=2)
    found = augmented_logits(logits, targets, weight, kept, 0.6)
    for i in range(6):
        y = int(targets[i])
        for j in range(C):
            spread = 0.0
            for a in range(D):
                for b in range(D):
                    if kind == "full" or a == b:
                        spread += ((weight[j, a] - weight[y, a]) * covariance[y, a, b]).item() * (
                            weight[j, b] - weight[y, b]
                        ).item()
            assert found[i, j].item() == pytest.approx(logits[i, j].item() + 0.3 * spread, rel=1e-10)
        assert found[i, y] == logits[i, y]
    given_ = [t.clone().requires_grad_() for t in (logits, weight, kept)]
    assert torch.autograd.gradcheck(lambda z, w, s: augmented_logits(z, targets, w, s, 0.6), given_)
    assert torch.equal(augmented_logits(logits, targets, weight, kept, 0.0), logits)


def test_the_loss_bounds_that_of_features_drawn_around_the_row():
    """Proposition 1, with twenty thousand features a row; for a small strength the bound is close."""
    features, targets, weight, covariance = case(1)
    generator = torch.Generator().manual_seed(2)
    for strength, near in ((1.0, float("inf")), (0.01, 0.05)):
        bound = F.cross_entropy(
            augmented_logits(features @ weight.T, targets, weight, covariance, strength), targets, reduction="none"
        )
        for i in range(6):
            root = torch.linalg.cholesky(strength * covariance[targets[i]])
            drawn = features[i] + torch.randn(20_000, D, generator=generator, dtype=torch.float64) @ root.T
            mean = F.cross_entropy(drawn @ weight.T, targets[i].expand(20_000)).item()
            assert mean <= bound[i].item() + 0.05 * strength**0.5
            assert bound[i].item() - mean < near


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_statistics_are_those_of_all_features_whatever_the_batches(seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    full = ClassStatistics(*(torch.zeros(*shape, dtype=torch.float64) for shape in [(C, D), (C, D, D), (C,)]))
    diagonal = full._replace(covariance=torch.zeros(C, D, dtype=torch.float64))
    rows, labels = [], []
    for size in sizes:
        features = 3 + torch.randn(size, D, generator=generator, dtype=torch.float64)
        targets = torch.randint(C, (size,), generator=generator)
        counted = torch.rand(size, generator=generator) < 0.8
        full, diagonal = (updated(each, features, targets, counted) for each in (full, diagonal))
        rows.append(features[counted].numpy())
        labels.append(targets[counted].numpy())
    x, y = np.concatenate(rows), np.concatenate(labels)
    for c in range(C):
        own = x[y == c]
        assert full.seen[c] == diagonal.seen[c] == len(own)
        mean, covariance = (own.mean(0), np.cov(own.T, bias=True)) if len(own) else (np.zeros(D), np.zeros((D, D)))
        for each in (full, diagonal):
            np.testing.assert_allclose(each.mean[c], mean, atol=1e-12)
        np.testing.assert_allclose(full.covariance[c], covariance, atol=1e-12)
        np.testing.assert_allclose(diagonal.covariance[c], np.diag(covariance), atol=1e-12)


class Normalised(nn.Linear):
    def forward(self, x):
        return F.normalize(x) @ self.weight.T


def test_features_as_the_weight_meets_them():
    torch.manual_seed(0)
    x = torch.randn(5, D)
    for classifier in (nn.Linear(D, C), nn.Linear(D, C, bias=False)):
        torch.testing.assert_close(seen_features(classifier, x), x)
    torch.testing.assert_close(seen_features(Normalised(D, C, bias=False), 7 * x), F.normalize(x))
    assert torch.equal(seen_features(nn.Linear(D, C), torch.zeros(1, D)), torch.zeros(1, D))
    assert seen_features(nn.Linear(D, C), x.bfloat16()).dtype == torch.float32


def test_margins_fall_with_the_fourth_root_of_the_count():
    torch.testing.assert_close(margins(torch.tensor([10000, 16, 1]), 0.5), torch.tensor([0.05, 0.25, 0.5]))
    assert margins(torch.tensor([5, 1]), 0.0).tolist() == [0, 0]


def test_meta_images_are_drawn_once_each_and_classes_alike():
    targets = torch.tensor([0] * 90 + [1] * 10)
    generator = torch.Generator().manual_seed(0)
    drawn = [balanced_draw(targets, 2, 4, generator) for _ in range(400)]
    assert all(len(set(each.tolist())) == 4 for each in drawn)
    assert torch.cat([targets[each] for each in drawn]).float().mean() == pytest.approx(0.5, abs=0.06)
    assert sorted(balanced_draw(targets, 2, 1000, generator).tolist()) == list(range(100))
