import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from ltcore.contract.samplers import (
    DISTRIBUTIONS,
    ClassPools,
    PlainSampler,
    class_balanced_distribution,
    draw_classes,
    square_root_distribution,
)

COUNTS = torch.tensor([60, 30, 9, 1])
TARGETS = torch.repeat_interleave(torch.arange(4), COUNTS)[
    torch.randperm(100, generator=torch.Generator().manual_seed(9))
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn_classes(distribution, epochs: int = 60) -> torch.Tensor:
    """How often each class is drawn."""
    sampler = PlainSampler(TARGETS, 4, 16)
    parts = [torch.cat(sampler.draw(7, distribution, generator(epoch)).indices) for epoch in range(epochs)]
    return torch.bincount(TARGETS[torch.cat(parts)], minlength=4)


def test_instance_balanced_draws_each_image_once():
    sampler = PlainSampler(TARGETS, 4, 16)
    drawn = sampler.draw(sampler.steps_per_epoch(), None, generator())
    assert [len(batch) for batch in drawn.indices] == [16] * 6 + [4]
    assert torch.cat(drawn.indices).sort().values.tolist() == list(range(100))
    again, other = sampler.draw(7, None, generator()), sampler.draw(7, None, generator(1))
    assert torch.equal(torch.cat(again.indices), torch.cat(drawn.indices))
    assert not torch.equal(torch.cat(other.indices), torch.cat(drawn.indices))


@pytest.mark.parametrize(("images", "batch", "steps"), [(17, 16, 1), (18, 16, 2), (5, 16, 1), (1, 16, 1), (32, 16, 2)])
def test_a_single_left_over_image_is_no_batch(images, batch, steps):
    sampler = PlainSampler(torch.zeros(images, dtype=torch.int64), 1, batch)
    assert sampler.steps_per_epoch() == steps
    sizes = [len(indices) for indices in sampler.draw(steps, None, generator()).indices]
    assert len(sizes) == steps and all(size > 1 or images == 1 for size in sizes)


@pytest.mark.parametrize("distribution", [None, class_balanced_distribution(COUNTS)])
def test_an_epoch_that_is_cut_is_the_beginning_of_the_whole(distribution):
    sampler = PlainSampler(TARGETS, 4, 16)
    whole, cut = (sampler.draw(steps, distribution, generator()).indices for steps in (7, 3))
    assert len(whole) == 7 and len(cut) == 3
    assert all(torch.equal(a, b) for a, b in zip(cut, whole, strict=False))


def test_the_distributions_that_a_recipe_can_name():
    assert DISTRIBUTIONS["instance"] is None
    assert DISTRIBUTIONS["class_balanced"](COUNTS).tolist() == [0.25] * 4
    expected = COUNTS.double().sqrt()
    assert torch.allclose(DISTRIBUTIONS["square_root"](COUNTS), expected / expected.sum())


@pytest.mark.parametrize("make", [class_balanced_distribution, square_root_distribution])
def test_classes_are_drawn_as_often_as_the_distribution_says(make):
    seen = drawn_classes(make(COUNTS))
    assert chisquare(seen, make(COUNTS) * seen.sum()).pvalue > 0.001


def test_images_of_a_class_are_equally_likely():
    pools = ClassPools(TARGETS, 4)
    seen = torch.bincount(pools.draw_images(torch.full((6000,), 1), generator()), minlength=100)
    assert not seen[TARGETS != 1].any()
    assert chisquare(seen[TARGETS == 1]).pvalue > 0.001


@pytest.mark.parametrize("weights", [[0, 1, 0, 0], [0.0, 0.0, 0.5, 0.5], [3, 0, 1, 0], [1e-30, 0, 0, 1]])
def test_a_class_of_probability_0_is_never_drawn(weights):
    seen = drawn_classes(torch.tensor(weights), epochs=5)
    assert all(count == 0 for count, weight in zip(seen.tolist(), weights, strict=True) if weight == 0)
    assert seen.sum() == 500


def test_a_draw_that_rounds_up_to_the_total_is_of_the_last_class_with_weight(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: torch.ones(shape, dtype=torch.float64))
    assert draw_classes(torch.tensor([0.1, 0.2, 0.3, 0.0]), (2,), generator()).tolist() == [2, 2]
    assert int(ClassPools(TARGETS, 4).draw_images(torch.tensor(2), generator())) in torch.nonzero(TARGETS == 2)


@given(
    targets=st.lists(st.integers(0, 5), min_size=1, max_size=40).map(torch.tensor),
    shape=st.sampled_from([(7,), (3, 4), (0,), (2, 0)]),
    seed=st.integers(0, 1000),
)
def test_pools_give_images_of_the_class_that_was_asked_for(targets, shape, seed):
    pools = ClassPools(targets, 6)
    assert pools.counts.tolist() == [int((targets == label).sum()) for label in range(6)]
    classes = draw_classes(pools.counts.double(), shape, generator(seed))
    images = pools.draw_images(classes, generator(seed))
    assert images.shape == shape and torch.equal(targets[images], classes)


@given(
    weights=st.lists(st.floats(1e-6, 1e6) | st.just(0.0), min_size=1, max_size=8).filter(any).map(torch.tensor),
    seed=st.integers(0, 1000),
)
def test_only_classes_with_weight_are_drawn(weights, seed):
    drawn = draw_classes(weights, (50,), generator(seed))
    assert drawn.dtype == torch.int64 and bool((weights[drawn] > 0).all())
