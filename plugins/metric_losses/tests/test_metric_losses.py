"""The losses against loops over their definitions, the sampler's promises, and runs."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ltcore_metric_losses import (
    LiftedStructure,
    LiftedStructureOptions,
    MPerClass,
    MPerClassOptions,
    MPerClassSampler,
    RangeLoss,
    RangeLossOptions,
    lifted_structure_loss,
    range_between,
    range_within,
    squared_distances,
)
from pydantic import ValidationError
from scipy.spatial.distance import cdist
from scipy.stats import hmean

import ltcore
from ltcore import RecipeError, class_balanced_distribution

CLASSES = 5
batches = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=14)


def rows_of(targets, width=3, scale=2.0):
    generator = torch.Generator().manual_seed(len(targets))
    return scale * torch.randn(len(targets), width, generator=generator, dtype=torch.float64)


def slow_within(rows, targets, largest):
    total = 0.0
    for label in set(targets):
        own = rows[[t == label for t in targets]]
        pairs = sorted((((own[i] - own[j]) ** 2).sum() for i in range(len(own)) for j in range(i)), reverse=True)
        if pairs:
            total += hmean(pairs[:largest])
    return total


def slow_between(rows, targets, margin):
    centres = np.stack([rows[[t == label for t in targets]].mean(0) for label in sorted(set(targets))])
    distances = cdist(centres, centres, "sqeuclidean")[np.triu_indices(len(centres), 1)]
    return max(0.0, margin - distances.min()) if len(distances) else 0.0


def slow_lifted(rows, targets, margin):
    distances, number = cdist(rows, rows), len(targets)
    values = []
    for i in range(number):
        for j in range(i + 1, number):
            if targets[i] == targets[j]:
                terms = [
                    math.exp(margin - distances[a, n])
                    for a in (i, j)
                    for n in range(number)
                    if targets[n] != targets[a]
                ]
                values.append(max(0.0, math.log(math.fsum(terms)) + distances[i, j]) ** 2 if terms else 0.0)
    return sum(values) / (2 * len(values)) if values else 0.0


@given(batches, st.integers(1, 4))
def test_range_loss_against_loops(labels, largest):
    rows, targets = rows_of(labels), torch.tensor(labels)
    found = range_within(rows, targets, CLASSES, largest)
    assert float(found) == pytest.approx(slow_within(rows.numpy(), labels, largest), rel=1e-9)
    for margin in (1.0, 50.0):
        found = range_between(rows, targets, margin)
        assert float(found) == pytest.approx(slow_between(rows.numpy(), labels, margin), rel=1e-9, abs=1e-9)


@given(batches, st.sampled_from([0.0, 1.0, 3.0]))
def test_lifted_structure_loss_against_a_loop(labels, margin):
    rows = rows_of(labels)
    found = lifted_structure_loss(rows, torch.tensor(labels), margin)
    assert float(found) == pytest.approx(slow_lifted(rows.numpy(), labels, margin), rel=1e-6, abs=1e-9)


LOSSES = {
    "within": lambda rows, targets: range_within(rows, targets, CLASSES),
    "between": lambda rows, targets: range_between(rows, targets, 60.0),
    "lifted": lambda rows, targets: lifted_structure_loss(rows, targets),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_against_finite_differences(name):
    targets = torch.tensor([0, 1, 1, 0, 3, 0, 1, 4, 3])
    rows = rows_of(targets.tolist()).requires_grad_()
    assert LOSSES[name](rows, targets).item() > 0
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, targets), rows)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", [[2], [1, 1, 1], [0, 1, 2], [0, 0, 0, 1, 1, 1]], ids=str)
def test_gradients_are_finite_where_rows_are_missing_or_the_same(name, labels):
    rows = torch.ones(len(labels), 3, requires_grad=True)
    LOSSES[name](rows, torch.tensor(labels)).backward()
    assert torch.isfinite(rows.grad).all()


def test_what_the_losses_do_not_change_with():
    """Moved rows lie as far apart; classes and rows have no order."""
    targets = torch.tensor([0, 1, 1, 0, 3, 0, 1, 4, 3])
    rows, order = rows_of(targets.tolist()), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    for loss in LOSSES.values():
        torch.testing.assert_close(loss(rows + 100, targets), loss(rows, targets))
        torch.testing.assert_close(loss(rows[order], targets[order]), loss(rows, targets))
        torch.testing.assert_close(loss(rows, (targets + 1) % CLASSES), loss(rows, targets))
    # In float32, far from 0, no distance is lost to rounding.
    found = squared_distances((rows + 100).float())
    np.testing.assert_allclose(found, cdist(rows, rows, "sqeuclidean"), atol=2e-3)


def drawn(counts, batch_size, images, steps=None, distribution=None, seed=0):
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(9))]
    sampler = MPerClassSampler(targets, len(counts), batch_size, images)
    steps = sampler.steps_per_epoch() if steps is None else steps
    return targets, sampler.draw(steps, distribution, torch.Generator().manual_seed(seed)).indices


@settings(max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(2, 13), st.integers(1, 5))
def test_groups_are_of_one_class_and_everything_comes_in_turn(counts, batch_size, images):
    targets, found = drawn(counts, batch_size, images)
    groups = [targets[group] for batch in found for group in torch.split(batch, images)]
    assert all(len(batch) == batch_size for batch in found) and all(len(set(g.tolist())) == 1 for g in groups)
    firsts = torch.tensor([int(group[0]) for group in groups])
    times = torch.bincount(firsts, minlength=len(counts))
    assert int(times.max() - times.min()) <= 1
    if batch_size % images == 0:  # nothing is cut off
        every = torch.cat(found)
        for label, count in enumerate(counts):
            own = every[targets[every] == label]
            seen = torch.bincount(own, minlength=len(targets))[targets == label]
            assert int(seen.max() - seen.min()) <= 1
            assert all(len(set(turn.tolist())) == len(turn) for turn in torch.split(own, count))


def test_a_cut_epoch_is_the_beginning_of_a_whole_one_and_a_seed_settles_it():
    whole, cut, other = (drawn([8, 3, 5], 6, 2, **how)[1] for how in ({}, {"steps": 1}, {"seed": 1}))
    assert torch.equal(whole[0], cut[0]) and len(cut) == 1 and not torch.equal(whole[0], other[0])


def test_a_distribution_is_followed():
    targets, found = drawn([400, 200, 10], 30, 3, distribution=torch.tensor([0.0, 0.25, 0.75]))
    shares = torch.bincount(targets[torch.cat(found)], minlength=3) / sum(map(len, found))
    assert float(shares[0]) == 0 and float(shares[1]) == pytest.approx(0.25, abs=0.1)
    _, found = drawn([400, 200, 10], 30, 3, distribution=class_balanced_distribution(torch.ones(3)))
    assert len(found) == 21 and all(len(batch) == 30 for batch in found)


def test_options():
    wrong = [(RangeLossOptions, {"largest": 0}), (RangeLossOptions, {"margin": 0}), (MPerClassOptions, {"images": 0})]
    for options, value in [*wrong, (LiftedStructureOptions, {"weight": -1}), (LiftedStructureOptions, {"margins": 1})]:
        with pytest.raises(ValidationError):
            options(**value)
    for method in (RangeLoss, LiftedStructure, MPerClass):
        assert all(field.description for field in type(method().options).model_fields.values())


RECIPE = """
threads: 1
data: {use: digits_lt}
backbone: {use: cifar_resnet, options: {depth: 8}}
methods: METHODS
stages:
  - {name: train, epochs: 2, batch_size: 64, methods: [NAMES],
     optimizer: {name: sgd, lr: 0.05, momentum: 0.9}}
"""


def trained(folder, methods):
    (folder / "recipe.yaml").write_text(
        RECIPE.replace("METHODS", json.dumps(methods)).replace("NAMES", ", ".join(methods))
    )
    return ltcore.run(folder / "recipe.yaml", out=folder / "run").logits


def test_runs(tmp_path):
    """With weights of 0 a run is that without the losses, bit for bit; with weights it is another."""
    none = {"range_loss": {"options": {"within_weight": 0.0, "between_weight": 0.0}}}
    none |= {"lifted_structure": {"options": {"weight": 0.0}}}
    for name in ("plain", "none", "all"):
        (tmp_path / name).mkdir()
    plain = trained(tmp_path / "plain", {"m_per_class": {}})
    assert np.array_equal(plain, trained(tmp_path / "none", {"m_per_class": {}, **none}))
    found = trained(tmp_path / "all", {"m_per_class": {}, "range_loss": {}, "lifted_structure": {}})
    assert np.isfinite(found).all() and not np.array_equal(plain, found)


def test_mixed_labels_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"'range_loss'.*mixup|mixup.*'range_loss'"):
        trained(tmp_path, {"range_loss": {}, "mixup": {}})
