import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from ltcore_glag import (
    adapt_confidence,
    class_log_prior,
    class_scores,
    distillation_loss,
    gradual_alpha,
    gradual_logits,
    pooled_scores,
)

FORMS = ["convex", "linear", "concave"]


@pytest.mark.parametrize(
    ("form", "half"), [("convex", math.sqrt(2) - 1), ("linear", 0.5), ("concave", 2 * (1 - 1 / math.sqrt(2)))]
)
def test_alpha_at_the_beginning_half_and_end(form, half):
    """Of 201 epochs, number 100 is half-way; s = 1 and c = 2 end at 1."""
    assert gradual_alpha(0, 201, form=form) == 0
    assert gradual_alpha(100, 201, form=form) == pytest.approx(half, rel=1e-12)
    assert gradual_alpha(200, 201, form=form) == pytest.approx(1, rel=1e-12)
    assert gradual_alpha(200, 201, 0.5, 5, form) == pytest.approx(0.5 * 4, rel=1e-12)


@given(st.integers(2, 50), st.floats(1.5, 8), st.floats(0.1, 3))
def test_alpha_rises_and_the_forms_are_ordered(epochs, base, scale):
    curves = {form: [gradual_alpha(e, epochs, scale, base, form) for e in range(epochs)] for form in FORMS}
    for values in curves.values():
        assert all(b > a for a, b in itertools.pairwise(values))
    for convex, linear, concave in list(zip(*curves.values(), strict=True))[1:-1]:
        assert convex < linear < concave


def test_concave_is_equation_3_with_the_inverse_base():
    for epoch in range(11):
        expected = -1.5 * 4 * ((1 / 4) ** (epoch / 10) - 1)
        assert gradual_alpha(epoch, 11, 1.5, 4, "concave") == pytest.approx(expected, abs=1e-12)


def test_alpha_of_one_epoch_and_of_wrong_settings():
    assert gradual_alpha(0, 1) == 0 == gradual_alpha(-1, 0)
    assert gradual_alpha(1, 2) == pytest.approx(1, rel=1e-12)
    with pytest.raises(ValueError, match="base should be above 1"):
        gradual_alpha(0, 1, base=1)
    with pytest.raises(ValueError, match="unknown form 'round'"):
        gradual_alpha(0, 1, form="round")


def test_the_loss_is_equation_4_in_float64():
    rng = np.random.default_rng(0)
    counts, logits, targets = np.array([50, 7, 3]), rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
    alpha, prior = 0.37, counts / counts.sum()
    expected = []
    for z, y in zip(logits, targets, strict=True):
        others = sum((prior[k] / prior[y]) ** alpha * math.exp(z[k] - z[y]) for k in range(3) if k != y)
        expected.append(math.log(1 + others))  # equation 2's second form, with alpha for tau
    adjusted = gradual_logits(torch.tensor(logits), class_log_prior(torch.tensor(counts)).double(), alpha)
    loss = F.cross_entropy(adjusted, torch.tensor(targets), reduction="none")
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-6)


def test_alpha_0_is_the_baseline_itself():
    logits = torch.randn(4, 3)
    assert gradual_logits(logits, class_log_prior(torch.tensor([5, 3, 1])), 0.0) is logits


def test_an_empty_class_has_no_logarithm():
    with pytest.raises(ValueError, match="no training images of class 1, 3"):
        class_log_prior(torch.tensor([4, 0, 2, 0]))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_kl_from_the_teacher_in_float64(temperature):
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))

    def softmax(z):
        e = np.exp(z / temperature)
        return e / e.sum(1, keepdims=True)

    p1, p2 = softmax(teacher), softmax(student)
    expected = temperature**2 * (p1 * np.log(p1 / p2)).sum(1)
    found = distillation_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    same = torch.tensor(teacher)
    assert distillation_loss(same, same, temperature).abs().max() == 0


def test_distillations_gradient_moves_the_student_towards_the_teacher():
    student = torch.tensor([[0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[3.0, 0.0, -1.0]])
    distillation_loss(student, teacher).sum().backward()
    expected = torch.full((3,), 1 / 3) - teacher[0].softmax(0)
    torch.testing.assert_close(student.grad[0], expected)


def test_scores_by_hand():
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    targets = torch.tensor([1, 1, 0])
    assert class_scores(logits, targets, "accuracy").tolist() == [1, 0, 1]
    expected = [np.exp(1) / (1 + np.exp(1)), 1 / (1 + np.exp(2)), 0.5]
    np.testing.assert_allclose(class_scores(logits, targets, "probability").numpy(), expected, rtol=1e-12)


def test_pooled_scores_are_means_over_images_and_not_over_classes():
    """Class 0 has two images, 1 one, 2 none, 3 two."""
    scores, targets = torch.tensor([1, 0, 1, 1, 0.5]).double(), torch.tensor([0, 0, 1, 3, 3])
    alone = pooled_scores(scores, targets, torch.arange(4)[:, None])
    assert alone[[0, 1, 3]].tolist() == [0.5, 1.0, 0.75] and alone[2].isnan()
    pooled = pooled_scores(scores, targets, torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]]))
    torch.testing.assert_close(pooled, torch.tensor([2 / 3, 1, 0.75, 2.5 / 4]).double())


def test_confidence_rises_and_falls_and_stays_within_its_bounds():
    confidence = torch.tensor([0.6, 0.6, 0.6, 0.95, 0.05, 0.6, 0.6])
    before = torch.tensor([0.2, 0.5, 0.3, 0.0, 1.0, torch.nan, 0.4])
    after = torch.tensor([0.4, 0.1, 0.3, 1.0, 0.0, torch.nan, torch.nan])
    found = adapt_confidence(confidence, after, before, 0.1)
    torch.testing.assert_close(found, torch.tensor([0.7, 0.5, 0.6, 1.0, 0.0, 0.6, 0.6]))
    assert torch.equal(adapt_confidence(confidence, after, before, 0.0), confidence)


def test_rounding_is_no_change():
    before = torch.tensor([1 / 3, 0.5], dtype=torch.float64)
    found = adapt_confidence(torch.tensor([0.6, 0.6]), before + torch.tensor([1e-8, 1e-4]), before, 0.1)
    torch.testing.assert_close(found, torch.tensor([0.6, 0.7]))
