import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from ltcore_mislas import label_aware_smoothing_loss, smoothing_factors
from scipy.special import log_softmax

CIFAR10_IM100 = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])


def test_factors_worked_out_by_hand():
    counts = torch.tensor([110, 60, 10])  # t = 1, 0.5, 0
    root = math.sqrt(0.5)
    expected = {
        "concave": [0.4, 0.1 + 0.3 * root, 0.1],
        "linear": [0.4, 0.25, 0.1],
        "convex": [0.4, 0.4 - 0.3 * root, 0.1],
    }
    for form, values in expected.items():
        assert smoothing_factors(counts, 0.4, 0.1, form).tolist() == pytest.approx(values, abs=1e-6)
    with pytest.raises(ValueError, match="concave, linear or convex"):
        smoothing_factors(counts, 0.4, 0.1, "round")


def test_factors_fall_with_the_count_and_the_forms_are_in_order():
    concave, linear, convex = (smoothing_factors(CIFAR10_IM100, 0.4, 0.1, f) for f in ("concave", "linear", "convex"))
    for factors in (concave, linear, convex):
        assert factors[0] == pytest.approx(0.4) and factors[-1] == pytest.approx(0.1)
        assert (factors.diff() < 0).all()
    assert (concave[1:-1] > linear[1:-1]).all() and (linear[1:-1] > convex[1:-1]).all()


def test_one_size_of_class_has_the_head_smoothing():
    for form in ("concave", "linear", "convex"):
        assert smoothing_factors(torch.tensor([7, 7]), 0.3, 0.1, form).tolist() == pytest.approx([0.3, 0.3])


@given(st.integers(2, 6), st.integers(1, 7), st.integers(0, 99), st.floats(0.1, 50), st.sampled_from(["others", "all"]))
def test_loss_against_a_slow_loop(classes, samples, seed, size, spread):
    rng = np.random.default_rng(seed)
    logits, targets = rng.normal(size=(samples, classes)) * size, rng.integers(classes, size=samples)
    factors = rng.uniform(0, 0.9, size=classes)
    found = label_aware_smoothing_loss(torch.tensor(logits), torch.tensor(targets), torch.tensor(factors), spread)
    for i, y in enumerate(targets):
        if spread == "others":
            label = np.full(classes, factors[y] / (classes - 1))
            label[y] = 1 - factors[y]
        else:
            label = np.full(classes, factors[y] / classes)
            label[y] += 1 - factors[y]
        assert label.sum() == pytest.approx(1)
        assert float(found[i]) == pytest.approx(-(label * log_softmax(logits[i])).sum(), rel=1e-9, abs=1e-9)


def test_one_factor_for_all_is_torchs_label_smoothing():
    logits, targets = torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 5
    expected = F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.2)
    # Torch spreads its smoothing over all classes, the target's own included.
    for factor, spread in ((0.2, "all"), (0.2 * 4 / 5, "others")):
        factors = torch.full((5,), factor, dtype=torch.float64)
        torch.testing.assert_close(label_aware_smoothing_loss(logits, targets, factors, spread), expected)


def test_one_form_is_the_other_with_other_factors():
    """At ten classes the authors' form smooths a tenth less; the default is the printed one."""
    logits, targets = torch.randn(20, 10, dtype=torch.float64), torch.arange(20) % 10
    factors = torch.linspace(0.4, 0.1, 10, dtype=torch.float64)
    found = label_aware_smoothing_loss(logits, targets, factors, "all")
    torch.testing.assert_close(found, label_aware_smoothing_loss(logits, targets, 0.9 * factors))
    assert (found - label_aware_smoothing_loss(logits, targets, factors)).abs().max() > 0.01
    with pytest.raises(ValueError, match="others or all, not 'both'"):
        label_aware_smoothing_loss(logits, targets, factors, "both")


def test_gradients_and_limits():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets, factors = torch.tensor([0, 1, 2, 0]), torch.tensor([0.4, 0.2, 0.1], dtype=torch.float64)
    for spread in ("others", "all"):
        assert torch.autograd.gradcheck(
            lambda x, s=spread: label_aware_smoothing_loss(x, targets, factors, s), (logits,)
        )
    large = torch.tensor([[1e4, -1e4]], requires_grad=True)
    label_aware_smoothing_loss(large, torch.tensor([0]), torch.tensor([0.4, 0.1])).sum().backward()
    assert large.grad.isfinite().all()
    with pytest.raises(ValueError, match="two classes"):
        label_aware_smoothing_loss(torch.zeros(1, 1), torch.tensor([0]), torch.tensor([0.1]))


def test_a_confident_answer_is_better_less_than_certain():
    # The loss is smallest where the softmax equals the smoothed label, here 0.6 to 0.4.
    steps = torch.linspace(-3, 6, 1001, dtype=torch.float64)
    logits = torch.stack([steps, torch.zeros_like(steps)], 1)
    loss = label_aware_smoothing_loss(logits, torch.zeros(1001, dtype=torch.int64), torch.tensor([0.4, 0.1]).double())
    assert steps[loss.argmin()] == pytest.approx(math.log(0.6 / 0.4), abs=0.01)
