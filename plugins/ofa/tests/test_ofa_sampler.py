"""The layout of OFA's batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ltcore_ofa.functional import head_classes
from ltcore_ofa.sampler import OFASampler, tail_rows

from ltcore import RecipeError

COUNTS = torch.tensor([100, 3000, 6000, 300, 600])  # sums to 10,000; head at 0.9: classes 1 and 2
HEAD = torch.tensor([False, True, True, False, False])


def targets_of(counts):
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def make(batch_size=40, augmented=4, counts=COUNTS, head=HEAD):
    targets = targets_of(counts)
    return OFASampler(targets, len(counts), head, batch_size, augmented), targets


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def test_an_epoch_covers_as_many_rows_as_there_are_images():
    assert make(batch_size=40)[0].steps_per_epoch() == 250
    assert make(batch_size=30)[0].steps_per_epoch() == 334
    assert make(counts=torch.tensor([1, 9, 9, 1, 1]))[0].steps_per_epoch() == 1


def test_blocks_hold_their_classes():
    sampler, targets = make()
    labels = targets[torch.stack(sampler.draw(250, None, generator()).indices)]
    assert labels.shape == (250, 24)  # and 16 more that are made of the tail
    assert not HEAD[labels[:, :4]].any() and HEAD[labels[:, 4:]].all()


def shares(labels):
    return torch.bincount(labels.flatten(), minlength=5).double() / labels.numel()


def assert_shares(labels, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    sigma = (expected * (1 - expected) / labels.numel()).sqrt()
    assert ((shares(labels) - expected).abs() <= 4 * sigma).all()


def test_without_a_distribution_images_of_a_block_are_equally_likely():
    sampler, targets = make()
    indices = torch.stack(sampler.draw(250, None, generator()).indices)
    assert_shares(targets[indices[:, :4]], [0.1, 0, 0, 0.3, 0.6])
    assert_shares(targets[indices[:, 4:]], [0, 1 / 3, 2 / 3, 0, 0])
    assert len(indices[:, 4:].unique()) > 3500  # 5,000 draws from 9,000 images: about 3,800 distinct ones


def test_a_distribution_is_followed_within_each_block():
    sampler, targets = make()
    distribution = torch.tensor([0.2, 0.1, 0.3, 0.2, 0.2])
    labels = targets[torch.stack(sampler.draw(250, distribution, generator()).indices)]
    assert_shares(labels[:, :4], [1 / 3, 0, 0, 1 / 3, 1 / 3])
    assert_shares(labels[:, 4:], [0, 0.25, 0.75, 0, 0])


def test_the_generator_is_all_the_randomness():
    sampler, _ = make()
    first, again = (torch.stack(sampler.draw(250, None, generator()).indices) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.stack(sampler.draw(250, None, generator(2)).indices))


def test_a_cut_epoch_is_the_beginning_of_a_whole_one():
    sampler, _ = make()
    whole = sampler.draw(250, None, generator()).indices
    cut = sampler.draw(7, None, generator()).indices
    assert len(cut) == 7
    assert all(torch.equal(a, b) for a, b in zip(cut, whole, strict=False))
    assert sampler.draw(0, None, generator()).indices == []


def test_one_tail_image_a_batch():
    sampler, targets = make(batch_size=8, augmented=3)
    batches = sampler.draw(5, None, generator())
    labels = targets[torch.stack(batches.indices)]
    assert sampler.tail_rows == 1 and labels.shape == (5, 5)
    assert not HEAD[labels[:, 0]].any() and HEAD[labels[:, 1:]].all()


def test_classes_without_images_are_never_drawn():
    counts = torch.tensor([0, 30, 60, 3, 6])
    sampler, targets = make(counts=counts)
    indices = torch.stack(sampler.draw(3, torch.full((5,), 0.2), generator()).indices)
    assert not (targets[indices] == 0).any()


@given(
    counts=st.lists(st.integers(0, 40), min_size=3, max_size=8),
    ratio=st.floats(0.05, 0.95),
    tails=st.integers(1, 9),
    augmented=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_half_of_what_is_trained_on_is_tail_and_half_is_head(counts, ratio, tails, augmented, seed):
    """Whatever the counts: the real rows are of their blocks, and what is made fills the tail's half up."""
    counts = torch.tensor(counts)
    if counts.sum() == 0:
        return
    head = head_classes(counts, ratio)
    if not (counts[head] > 0).any() or not (counts[~head] > 0).any():
        return
    size = 2 * tails * (1 + augmented)
    sampler, targets = make(size, augmented, counts, head)
    batches = sampler.draw(3, None, generator(seed))
    assert len(batches.indices) == min(3, sampler.steps_per_epoch())
    for indices in batches.indices:
        assert len(indices) + tails * augmented == size and indices.min() >= 0 and indices.max() < len(targets)
        labels = targets[indices]
        assert not head[labels[:tails]].any() and head[labels[tails:]].all()
        assert len(labels[tails:]) == size // 2


def test_without_augmentation_the_shares_within_the_halves_stay():
    sampler, targets = make(batch_size=40, augmented=0)
    labels = targets[torch.stack(sampler.draw(250, None, generator()).indices)]
    assert sampler.tail_rows == 20 and tail_rows(128, 0) == 64
    assert_shares(labels[:, :20], [0.1, 0, 0, 0.3, 0.6])
    assert_shares(labels[:, 20:], [0, 1 / 3, 2 / 3, 0, 0])
    with pytest.raises(RecipeError, match=r"batch_size 39 is not a multiple of 2 = .*; use 38 or 40"):
        tail_rows(39, 0)


@pytest.mark.parametrize(
    ("batch_size", "advice"), [(100, "use 96 or 104"), (4, "use 8"), (9, "use 8 or 16"), (127, "use 120 or 128")]
)
def test_a_batch_size_that_does_not_divide_is_refused(batch_size, advice):
    with pytest.raises(RecipeError, match=rf"batch_size {batch_size} is not a multiple of 8 = .*; {advice}$"):
        make(batch_size=batch_size, augmented=3)


def test_the_papers_batch_holds_sixteen_tail_images():
    assert tail_rows(128, 3) == 16


@pytest.mark.parametrize(("distribution", "block"), [([0, 0.5, 0.5, 0, 0], "tail"), ([0.5, 0, 0, 0.5, 0], "head")])
def test_a_distribution_that_leaves_a_block_empty_is_refused(distribution, block):
    with pytest.raises(RecipeError, match=f"never draws a {block} class"):
        make()[0].draw(1, torch.tensor(distribution), generator())
