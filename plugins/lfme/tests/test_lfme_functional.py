"""Functions against loops, and against what the published code gave for the same numbers."""

import math

import numpy as np
import pytest
import torch
from ltcore_lfme import (
    class_groups,
    distillation_loss,
    expert_weights,
    group_accuracies,
    group_logits,
    growing_weights,
    start_weights,
)
from scipy.special import rel_entr, softmax

NUMBERS = torch.arange(24, dtype=torch.float64).reshape(4, 6)
STUDENT, EXPERT = 3 * (0.7 * NUMBERS).sin(), 4 * (1.3 * NUMBERS).cos()
TARGETS = torch.tensor([0, 3, 2, 5])


def members(*classes):
    return torch.tensor([label in classes for label in range(6)])


def test_groups_are_the_published_ones():
    counts = torch.tensor([1280, 101, 100, 99, 21, 20, 5])
    assert class_groups(counts, [100, 21]).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert class_groups(counts, []).tolist() == [0] * 7
    with pytest.raises(ValueError, match="descend"):
        class_groups(counts, [21, 100])


@pytest.mark.parametrize(
    ("classes", "published"), [((0, 1), 0.3615945599873668), ((2, 3, 4), 0.44405744601266595), ((5,), 0.0)]
)
def test_distillation(classes, published):
    found = distillation_loss(STUDENT, EXPERT, members(*classes), 2.0)
    rows = [
        rel_entr(softmax(t[list(classes)] / 2), softmax(z[list(classes)] / 2)).sum()
        for z, t in zip(STUDENT.numpy(), EXPERT.numpy(), strict=True)
    ]
    np.testing.assert_allclose(found, rows, atol=1e-12)
    assert found.mean().item() == pytest.approx(published, abs=1e-12)


def test_an_expert_teaches_its_own_classes_alone():
    z, t = STUDENT.clone().requires_grad_(), EXPERT.clone().requires_grad_()
    distillation_loss(z, t, members(2, 3, 4)).sum().backward()
    assert t.grad is None
    assert (z.grad[:, 2:5] != 0).all() and not z.grad[:, [0, 1, 5]].any()
    expected = (softmax(STUDENT[:, 2:5] / 2, 1) - softmax(EXPERT[:, 2:5] / 2, 1)) / 2
    np.testing.assert_allclose(z.grad[:, 2:5], expected, atol=1e-12)


def test_a_loss_among_the_group():
    z = STUDENT.float().requires_grad_()
    inside = members(0, 3)
    values = torch.nn.functional.cross_entropy(group_logits(z, inside, TARGETS), TARGETS, reduction="none")
    for row, target in enumerate(TARGETS.tolist()):
        among = sorted({0, 3, target})
        expected = -math.log(softmax(STUDENT[row, among].numpy())[among.index(target)])
        assert values[row].item() == pytest.approx(expected, rel=1e-5)
    values.sum().backward()
    assert not z.grad[0, [1, 2, 4, 5]].any() and z.grad[0, [0, 3]].all()


def test_expert_weights():
    """The published code's, and 1 or 0 where it would divide by 0."""
    student = torch.tensor([0, 0.2, 0.3, 0.5, 0.8, 0.9], dtype=torch.float64)
    found = expert_weights(student, torch.full_like(student, 0.8), 0.3)
    np.testing.assert_allclose(found, [1, 1, 0.8928571428571429, 0.5357142857142858, 0, 0], atol=1e-12)
    assert expert_weights(torch.tensor([0.0, 0.4]), torch.tensor([0.0, math.nan])).tolist() == [0, 1]
    # From 1 on it falls without a jump.
    near = expert_weights(
        torch.tensor([0.24 - 1e-9, 0.24 + 1e-9], dtype=torch.float64), torch.tensor(0.8).double(), 0.3
    )
    np.testing.assert_allclose(near, [1, 1], atol=1e-6)


def test_accuracy_of_groups_is_the_mean_over_their_classes():
    targets = torch.tensor([0, 0, 0, 1, 2, 2])
    right = torch.tensor([True, True, False, False, True, True])
    found = group_accuracies(right, targets, torch.tensor([0, 0, 1, 1, 2]), 3)
    np.testing.assert_allclose(found, [(2 / 3 + 0) / 2, 1.0, math.nan])


def test_start_weights():
    """The published code's, whose means of images are 230, 53 and 12; and 1 for a class whose images are alike."""
    sure = torch.tensor([0.9, 0.5, 0.7, 0.2, 0.8, 0.35, 0.6, 0.1], dtype=torch.float64)
    targets, counts, groups = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]), torch.tensor([230, 53, 12]), torch.arange(3)
    found = start_weights(sure, targets, counts, groups)
    published = [1, 0.05217391304347826, 0.526086956521739, 0.22641509433962265, 1, 0.41981132075471694, 1, 1]
    np.testing.assert_allclose(found, published, atol=1e-12)
    assert start_weights(torch.full_like(sure, 0.4), targets, counts, groups).tolist() == [1] * 8
    # Means are those of a group's classes.
    joint = start_weights(sure, targets, torch.tensor([230, 54, 12]), torch.tensor([0, 0, 1]))
    assert joint.min().item() == pytest.approx(12 / 142)


def test_weights_grow_as_published():
    start = torch.tensor([0.1, 0.6], dtype=torch.float64)
    for epoch, published in [(1, [0.12, 0.60888892]), (20, [0.5, 0.77777779]), (45, [1, 1]), (90, [1.9, 1.4])]:
        np.testing.assert_allclose(growing_weights(start, epoch / 45), published, atol=1e-7)
