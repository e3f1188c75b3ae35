import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ltcore.contract.imbalance import Imbalance, long_tailed_counts, long_tailed_indices
from ltcore.errors import DataError


def exponential(factor, **more):
    return Imbalance(kind="exponential", factor=factor, **more)


@pytest.mark.parametrize(
    ("classes", "factor", "total"),
    [
        *[(10, 10, 20431), (10, 50, 13996), (10, 100, 12406), (10, 200, 11203)],
        *[(100, 10, 19573), (100, 50, 12608), (100, 100, 10847), (100, 200, 9502)],
    ],
)
def test_published_totals(classes, factor, total):
    counts = long_tailed_counts(exponential(factor), np.full(classes, 50_000 // classes))
    assert counts.sum() == total
    assert counts.dtype == np.int64


def test_published_counts():
    counts = long_tailed_counts(exponential(100), np.full(10, 5000))
    assert counts.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    counts = long_tailed_counts(Imbalance(kind="step", factor=100), np.full(5, 500))
    assert counts.tolist() == [500, 500, 5, 5, 5]


def test_the_rule_starts_from_the_smallest_class_or_max_count():
    available = np.array([90, 40, 60])
    assert long_tailed_counts(exponential(4), available).tolist() == [40, 20, 10]
    assert long_tailed_counts(exponential(4, max_count=60), available).tolist() == [60, 30, 15]
    assert long_tailed_counts(Imbalance(), available).tolist() == [90, 40, 60]
    assert long_tailed_counts(Imbalance(kind="counts", counts=[1, 2, 3]), available).tolist() == [1, 2, 3]
    assert long_tailed_counts(exponential(4), np.array([7])).tolist() == [7]


@given(
    available=st.lists(st.integers(50, 500), min_size=2, max_size=30),
    factor=st.floats(1, 40),
    kind=st.sampled_from(["exponential", "step"]),
)
def test_counts_fall_and_stay_within_what_there_is(available, factor, kind):
    counts = long_tailed_counts(Imbalance(kind=kind, factor=factor), np.array(available))
    assert counts[0] == min(available)
    assert (np.diff(counts) <= 0).all()
    assert counts[-1] in (int(min(available) / factor), int(min(available) * (1 / factor)))
    assert (counts >= 1).all() and (counts <= available).all()


@given(
    labels=st.lists(st.integers(0, 4), min_size=5, max_size=60).map(lambda tail: [0, 1, 2, 3, 4, *tail]),
    seed=st.integers(0, 2**32 - 2),
    share=st.floats(0.1, 1),
)
def test_indices_are_those_of_the_published_loop(labels, seed, share):
    targets = np.array(labels)
    counts = np.maximum(1, (np.bincount(targets) * share).astype(int))
    # The loop of the published code, word for word but for the seed.
    np.random.seed(seed)
    expected = []
    for the_class, the_img_num in zip(range(5), counts, strict=True):
        idx = np.where(targets == the_class)[0]
        np.random.shuffle(idx)
        expected.extend(idx[:the_img_num].tolist())
    assert long_tailed_indices(targets, counts, seed).tolist() == expected


def test_indices_at_full_size():
    targets = np.random.RandomState(5).permutation(np.repeat(np.arange(10), 5000))
    counts = long_tailed_counts(exponential(100), np.bincount(targets))
    kept = long_tailed_indices(targets, counts, 0)
    assert np.bincount(targets[kept]).tolist() == counts.tolist()
    assert len(np.unique(kept)) == 12406
    assert (np.diff(targets[kept]) >= 0).all()


def test_errors_name_class_and_numbers():
    names = ("dog", "cat")
    with pytest.raises(
        DataError, match=r"class 1 \('cat'\) would have no training image: .*leaves it 0 of 9; lower its factor"
    ):
        long_tailed_counts(exponential(100), np.array([9, 9]), names)
    with pytest.raises(DataError, match=r"class 0 \('dog'\) is to keep 10 training images, but the data set has 9"):
        long_tailed_counts(exponential(2, max_count=10), np.array([9, 9]), names)
    with pytest.raises(DataError, match="class 1 is to keep 3 training images, but the data set has 1"):
        long_tailed_indices(np.array([0, 0, 1]), np.array([1, 3]), 0)
    with pytest.raises(DataError, match="has 3 numbers, but the data set has 2 classes"):
        long_tailed_counts(Imbalance(kind="counts", counts=[1, 1, 1]), np.array([9, 9]))
    with pytest.raises(DataError, match="class 1 would have no training image"):
        long_tailed_counts(Imbalance(), np.array([9, 0]), ("0", "1"))
    with pytest.raises(DataError, match="class 0 would have no training image"):
        long_tailed_counts(Imbalance(kind="counts", counts=[-1, 2]), np.array([9, 9]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "exponential"}, "kind 'exponential' needs a factor"),
        ({"kind": "step"}, "kind 'step' needs a factor"),
        ({"kind": "counts"}, "kind 'counts' needs counts"),
        ({"kind": "counts", "counts": []}, "kind 'counts' needs counts"),
        ({"factor": 10}, "factor belongs to kind 'exponential', 'step' or 'balanced_like', but kind is 'none'"),
        ({"kind": "counts", "counts": [1], "max_count": 3}, "max_count belongs to"),
        ({"kind": "step", "factor": 2, "counts": [1]}, "counts belongs to kind 'counts'"),
        ({"kind": "step", "factor": 0.01}, "greater than or equal to 1"),
        ({"kind": "linear"}, "Input should be 'none'"),
        ({"ratio": 3}, "Extra inputs"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValidationError, match=message):
        Imbalance(**options)


def test_options_need_no_torch():
    code = "import sys, ltcore.contract.imbalance, ltcore.data.describe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("factor", "total"), [(100, 12406), (10, 20431)])
def test_balanced_like_has_the_size_of_the_long_tail(factor, total):
    counts = long_tailed_counts(Imbalance(kind="balanced_like", factor=factor), np.full(10, 5000))
    assert counts.sum() == total
    assert counts.tolist() == [total // 10 + (label < total % 10) for label in range(10)]


def test_seeds_are_those_of_numpys_legacy_generator():
    """One less than its largest: held-out images are drawn with the next one."""
    assert Imbalance(seed=2**32 - 2).seed == 2**32 - 2 and Imbalance(seed=65).seed == 65
    for seed in (-1, 2**32 - 1):
        with pytest.raises(ValidationError):
            Imbalance(seed=seed)
