"""The layout of SAFA's batches."""

import pytest
import torch
from ltcore_safa.sampler import PairSampler, lay_out

from ltcore import PlainSampler, RecipeError

COUNTS = torch.tensor([30, 300, 600, 1, 69])  # head: class 2
HEAD = torch.tensor([False, False, True, False, False])
TARGETS = torch.repeat_interleave(torch.arange(5), COUNTS)[torch.randperm(1000, generator=torch.Generator())]


def make(batch_size=20, active=True, head=HEAD):
    return PairSampler(TARGETS, 5, head, batch_size, lambda: active)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def drawn(sampler, distribution=None, steps=None, seed=1):
    return torch.stack(sampler.draw(steps or sampler.steps_per_epoch(), distribution, generator(seed)).indices)


@pytest.mark.parametrize(
    ("batch_size", "share", "head", "tail", "spare"),
    [
        (20, 0.6, 6, 4, 0.0),
        (20, 0.25, 2, 7, 0.5),
        (128, 0.2, 12, 51, 0.8),
        (21, 0.6, 6, 4, 0.0),
        (4, 0.01, 1, 1, 0.0),
        (4, 0.99, 1, 1, 0.0),
        (20, 0.01, 1, 9, 0.0),
        (20, 0.99, 9, 1, 0.0),
    ],
)
def test_blocks_have_their_share_and_at_least_one_pair(batch_size, share, head, tail, spare):
    layout = lay_out(batch_size, share)
    assert (layout.head_pairs, layout.tail_pairs) == (head, tail)
    assert layout.spare_head == pytest.approx(spare)
    assert layout.spare_pairs == batch_size // 2 - head - tail


@pytest.mark.parametrize("batch_size", [4, 5, 17, 64, 127])
def test_a_layout_fills_the_batch_and_is_right_on_average(batch_size):
    for share in torch.linspace(0.01, 0.99, 50).tolist():
        layout, pairs = lay_out(batch_size, share), batch_size // 2
        assert layout.head_pairs >= 1 and layout.tail_pairs >= 1 and layout.spare_pairs in (0, 1)
        assert layout.head_pairs + layout.spare_head == pytest.approx(min(max(share * pairs, 1), pairs - 1))


@pytest.mark.parametrize("batch_size", [20, 21, 9])
@pytest.mark.parametrize("distribution", [None, torch.tensor([0.2, 0.2, 0.35, 0.05, 0.2])])
def test_blocks_hold_pairs_of_different_images_of_one_class(batch_size, distribution):
    sampler = make(batch_size)
    indices = drawn(sampler, distribution)
    layout = sampler.draw(1, distribution, generator(1)).layout
    labels = TARGETS[indices]
    assert indices.shape == (sampler.steps_per_epoch(), batch_size)
    start = 0
    for pairs, kind in ((layout.head_pairs, True), (layout.tail_pairs, False), (layout.spare_pairs, None)):
        first, second = slice(start, start + pairs), slice(start + pairs, start + 2 * pairs)
        assert torch.equal(labels[:, first], labels[:, second])
        if kind is not None:
            assert (HEAD[labels[:, first]] == kind).all()
        alone = labels[:, first] == 3  # the class of one image is paired with itself
        assert torch.equal(indices[:, first] == indices[:, second], alone)
        start += 2 * pairs
    assert start + batch_size % 2 == batch_size


@pytest.mark.parametrize("batch_size", [20, 17])
@pytest.mark.parametrize("distribution", [None, torch.tensor([0.1, 0.1, 0.43, 0.17, 0.2], dtype=torch.float64)])
def test_classes_are_drawn_as_the_distribution_says(batch_size, distribution):
    labels = TARGETS[torch.cat([drawn(make(batch_size), distribution, seed=seed) for seed in range(20)])].flatten()
    expected = COUNTS / 1000 if distribution is None else distribution
    found = torch.bincount(labels, minlength=5) / len(labels)
    sigma = (2 * expected * (1 - expected) / len(labels)).sqrt()  # the two rows of a pair are one draw
    assert ((found - expected).abs() < 5 * sigma).all()


def test_images_of_a_class_are_drawn_alike():
    indices = torch.cat([drawn(make(), seed=seed) for seed in range(30)]).flatten()
    of_class = torch.nonzero(TARGETS == 0).flatten()
    found = torch.bincount(indices, minlength=1000)[of_class].double()
    assert found.sum() > 500
    # chi-square over 30 images, doubled for pairs: mean 58, standard deviation about 15
    assert ((found - found.mean()) ** 2 / found.mean()).sum() < 130


def test_the_generator_is_all_the_randomness():
    sampler = make()
    first = drawn(sampler, seed=4)
    drawn(sampler, torch.full((5,), 0.2), seed=9)
    assert torch.equal(drawn(sampler, seed=4), first) and torch.equal(drawn(make(), seed=4), first)
    assert not torch.equal(drawn(sampler, seed=5), first)


def test_a_cut_epoch_is_the_beginning_of_a_whole_one():
    whole = drawn(make())
    cut = drawn(make(), steps=7)
    assert len(cut) == 7 and torch.equal(cut, whole[:7])


@pytest.mark.parametrize("distribution", [None, torch.full((5,), 0.2)])
@pytest.mark.parametrize("batch_size", [20, 23, 333, 2000])
def test_before_the_start_batches_are_the_plain_ones(batch_size, distribution):
    sampler, plain = make(batch_size, active=False), PlainSampler(TARGETS, 5, batch_size)
    steps = plain.steps_per_epoch()
    assert sampler.steps_per_epoch() == steps
    ours, theirs = (s.draw(steps, distribution, generator()) for s in (sampler, plain))
    assert all(torch.equal(a, b) for a, b in zip(ours.indices, theirs.indices, strict=True))
    assert ours.layout is None


@pytest.mark.parametrize(("distribution", "name"), [([0.0, 0, 1, 0, 0], "tail"), ([0.5, 0.5, 0, 0, 0], "head")])
def test_a_distribution_that_leaves_a_kind_out_is_refused(distribution, name):
    with pytest.raises(RecipeError, match=f"never draws a {name} class, and SAFA needs both"):
        drawn(make(), torch.tensor(distribution))
