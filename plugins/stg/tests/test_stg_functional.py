"""Each function against a slow loop in float64 NumPy, or a figure worked out by hand."""

from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ltcore_stg.functional import (
    augmented,
    class_strength,
    cycled,
    divergences,
    last_alike,
    partly_kept,
    places_to_fill,
    smoothed,
    statistics_loss,
    transformation_statistics,
)
from torch.distributions import Independent, Normal, kl_divergence


def slow_statistics(anchors, labels, sources, pool, pool_labels, pool_sources):
    """Eq. 1, sample by sample."""
    means, variances, numbers = [], [], []
    for a, label, source in zip(anchors, labels, sources, strict=True):
        others = [
            b - a
            for b, other, origin in zip(pool, pool_labels, pool_sources, strict=True)
            if label >= 0 and other == label and origin != source
        ]
        numbers.append(len(others))
        mean = sum(others) / len(others) if others else np.zeros_like(a)
        means.append(mean)
        variances.append(sum((x - mean) ** 2 for x in others) / len(others) if others else np.zeros_like(a))
    return np.array(means), np.array(variances), numbers


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_targets_equal_a_slow_loop(offset):
    """Far from zero, too, where squares of uncentred features would lose the variance to rounding."""
    random = np.random.default_rng(0)
    pool = random.normal(size=(20, 3)) * 0.1 + offset
    labels, sources = random.integers(-1, 3, 20), random.integers(0, 12, 20)
    expected = slow_statistics(pool[:8], labels[:8], sources[:8], pool, labels, sources)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        x, y, s = torch.from_numpy(pool).to(dtype), torch.from_numpy(labels), torch.from_numpy(sources)
        mean, variance, number = transformation_statistics(x[:8], y[:8], s[:8], x, y, s)
        assert mean.dtype == variance.dtype == dtype
        np.testing.assert_allclose(mean, expected[0], atol=tolerance)
        np.testing.assert_allclose(variance, expected[1], atol=tolerance * 0.01)
        assert number.tolist() == expected[2]
    assert (labels[:8] < 0).any(), "a row without a label is among the anchors"


def test_targets_by_hand():
    """Of 1, 2 and 6 in one class, the first sees +1 and +5: mean 3, variance 4. The other class is one image twice."""
    x = torch.tensor([[1.0], [2.0], [6.0], [9.0], [8.0]])
    labels, sources = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([4, 5, 6, 7, 7])
    mean, variance, number = transformation_statistics(x, labels, sources, x, labels, sources)
    torch.testing.assert_close(mean[:, 0], torch.tensor([3.0, 1.5, -4.5, 0.0, 0.0]))
    torch.testing.assert_close(variance[:, 0], torch.tensor([4.0, 6.25, 0.25, 0.0, 0.0]))
    assert number.tolist() == [2, 2, 2, 0, 0]


def test_smoothing_by_hand():
    old, new = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [2.0]])
    assert smoothed(old, new, torch.tensor([True, False]), 0.75).tolist() == [[1.25], [2.0]]
    assert smoothed(old, new, torch.tensor([True, True]), 0).tolist() == [[2.0], [2.0]]


@given(st.integers(1, 7), st.lists(st.lists(st.booleans(), min_size=1, max_size=10), max_size=6))
def test_the_dictionary_is_first_in_first_out(size, batches):
    """Against Python's own queue of limited length, over several batches, some larger than the dictionary."""
    queue, places, pointer, count = deque(maxlen=size), torch.full((size,), -1), torch.tensor(0), 0
    for batch in batches:
        values = torch.arange(count, count + len(batch))
        count += len(batch)
        wanted = torch.tensor(batch)
        queue.extend(values[wanted].tolist())
        filled, row, pointer = places_to_fill(wanted, pointer, size)
        places = torch.where(filled, values[row], places)
        oldest_first = [p for p in torch.roll(places, -int(pointer)).tolist() if p >= 0]
        assert oldest_first == list(queue)


def test_places_by_hand():
    filled, row, pointer = places_to_fill(torch.tensor([False, True, True, False]), torch.tensor(3), 4)
    assert filled.tolist() == [True, False, False, True] and pointer == 1
    assert (row[3], row[0]) == (1, 2), "row 1 takes the oldest place, row 2 the one after it, around the end"


@given(st.lists(st.booleans(), min_size=1, max_size=9))
def test_rows_are_cycled(wanted):
    chosen = [i for i, w in enumerate(wanted) if w]
    index = cycled(torch.tensor(wanted)).tolist()
    assert len(index) == len(wanted)
    if chosen:
        assert index == (chosen * len(wanted))[: len(wanted)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_last_alike(keys):
    expected = [max(j for j, key in enumerate(keys) if key == k) for k in keys]
    assert last_alike(torch.tensor(keys)).tolist() == expected


def test_loss_equals_a_slow_loop():
    random = np.random.default_rng(1)
    mean, true_mean = random.normal(size=(2, 5, 3))
    variance, true_std = random.uniform(0.1, 2, size=(2, 5, 3))
    counted = [True, False, True, True, False]
    terms = [
        (mean[i, d] - true_mean[i, d]) ** 2 + (np.sqrt(variance[i, d]) - true_std[i, d]) ** 2
        for i in range(5)
        for d in range(3)
        if counted[i]
    ]
    given_ = [torch.from_numpy(x) for x in (mean, variance, true_mean, true_std)]
    torch.testing.assert_close(statistics_loss(*given_, torch.tensor(counted)).item(), float(np.mean(terms)))


def test_loss_without_rows_is_zero_with_gradients_of_zero():
    mean = torch.ones(2, 3, requires_grad=True)
    loss = statistics_loss(mean, torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2, dtype=bool))
    loss.backward()
    assert loss == 0 and torch.equal(mean.grad, torch.zeros(2, 3))


def test_strength_by_hand():
    assert class_strength(torch.tensor([400, 100, 4])).tolist() == pytest.approx([0.1, 0.2, 1.0])


def test_augmentation_equals_a_slow_loop():
    """Eq. 3 and 4, channel by channel."""
    random = np.random.default_rng(2)
    a, mu, noise = random.normal(size=(3, 6, 4))
    variance, uniform = random.uniform(0, 1, size=(2, 6, 4))
    counts, labels, strength, threshold = [9, 4], [0, 1, 1, 0, 1, 0], 1.5, 0.5
    expected = np.empty_like(a)
    for i in range(6):
        beta = (min(counts) / counts[labels[i]]) ** 0.5
        for d in range(4):
            moved = a[i, d] + (variance[i, d] ** 0.5 * noise[i, d] + mu[i, d]) * strength * beta
            expected[i, d] = a[i, d] if uniform[i, d] > threshold else moved
    x, mean, var, eps, m = (torch.from_numpy(v) for v in (a, mu, variance, noise, uniform))
    scale = strength * class_strength(torch.tensor(counts)).double()[torch.tensor(labels)]
    got = partly_kept(x, augmented(x, mean, var, eps, scale), m, threshold)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_divergences_are_torchs():
    generator = torch.Generator().manual_seed(0)
    mean, variance = torch.randn(4, 6, generator=generator), torch.rand(4, 6, generator=generator) + 0.1
    found = divergences(mean, variance)
    each = [Independent(Normal(m, v.sqrt()), 1) for m, v in zip(mean.double(), variance.double(), strict=True)]
    wanted = torch.stack([torch.stack([kl_divergence(one, other) for other in each]) for one in each])
    torch.testing.assert_close(found, wanted)
    assert found.diagonal().abs().max() < 1e-12 and found[0, 1] != found[1, 0]


def test_thresholds_of_0_and_1():
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    uniform = torch.tensor([[0.0, 0.5, 1 - 2**-24]]).expand(2, 3)
    assert torch.equal(partly_kept(a, b, uniform, 0), a)
    assert torch.equal(partly_kept(a, b, uniform, 1), b)
