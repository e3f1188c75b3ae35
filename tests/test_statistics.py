import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from ltcore.contract.statistics import largest_classes, nearest_classes

QUERIES = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
MEANS = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
ALL = torch.ones(5, dtype=torch.bool)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_nearest_first_as_scipy_says(metric, k):
    classes, distances = nearest_classes(QUERIES, MEANS, ALL, k, metric)
    expected = cdist(QUERIES.double().numpy(), MEANS.double().numpy(), metric)
    assert classes.dtype == torch.int64 and distances.dtype == torch.float32
    np.testing.assert_array_equal(classes.numpy(), expected.argsort(1)[:, :k])
    np.testing.assert_allclose(distances.numpy(), np.sort(expected, 1)[:, :k], rtol=1e-5, atol=1e-6)


def test_the_metrics_differ_where_the_lengths_do():
    means = torch.tensor([[10.0, 0.0], [0.0, 1.0]])
    query = torch.tensor([[1.0, 0.5]])
    both = torch.ones(2, dtype=torch.bool)
    assert nearest_classes(query, means, both, 1, "cosine")[0].item() == 0
    assert nearest_classes(query, means, both, 1, "euclidean")[0].item() == 1


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_mask_for_all_and_a_mask_a_query(metric):
    first = nearest_classes(QUERIES, MEANS, ALL, 1, metric)[0]
    own = torch.ones(7, 5, dtype=torch.bool).scatter_(1, first, False)
    second = nearest_classes(QUERIES, MEANS, ALL, 2, metric)[0][:, 1:]
    assert torch.equal(nearest_classes(QUERIES, MEANS, own, 1, metric)[0], second)
    only = torch.tensor([False, False, True, False, True])
    classes, distances = nearest_classes(QUERIES, MEANS, only, 2, metric)
    assert torch.equal(classes.sort(1).values, torch.tensor([2, 4]).expand(7, 2))
    same, alike = nearest_classes(QUERIES, MEANS, only.expand(7, 5), 2, metric)
    assert torch.equal(classes, same) and torch.equal(distances, alike)


def test_missing_candidates_are_infinitely_far():
    only = torch.tensor([False, True, False, False, True])
    classes, distances = nearest_classes(QUERIES, MEANS, only, 4)
    assert distances.isfinite().tolist() == [[True, True, False, False]] * 7
    assert torch.equal(classes[:, :2].sort(1).values, torch.tensor([1, 4]).expand(7, 2))


def test_a_mean_of_zero_has_no_direction_and_gives_no_nan():
    _, distances = nearest_classes(QUERIES, torch.zeros(2, 3), torch.ones(2, dtype=torch.bool), 2, "cosine")
    assert torch.equal(distances, torch.ones(7, 2))


@pytest.mark.parametrize(
    ("counts", "fraction", "head"),
    [
        ([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], 0.2, [0, 1]),
        ([5, 9, 7, 9], 0.5, [1, 3]),
        ([5, 9, 9, 9], 0.5, [1, 2]),  # a tie goes by label
        ([4, 3, 2], 0.01, [0]),
        ([4, 3, 2], 0.99, [0, 1]),
    ],
)
def test_largest_classes(counts, fraction, head):
    assert largest_classes(torch.tensor(counts), fraction).nonzero()[:, 0].tolist() == head


def test_a_share_is_not_lost_to_rounding():
    """0.29 * 100 is below 29 in floating point."""
    assert largest_classes(torch.arange(100), 0.29).sum() == 29


@pytest.mark.parametrize(("classes", "fraction"), [(1, 0.5), (4, 0.0), (4, 1.0)])
def test_no_head_and_tail(classes, fraction):
    with pytest.raises(ValueError, match="no head and tail"):
        largest_classes(torch.ones(classes, dtype=torch.int64), fraction)
