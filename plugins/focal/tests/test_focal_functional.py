import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ltcore_focal import focal_loss
from scipy.special import log_softmax


def batch(seed: int, n: int = 16, c: int = 7, spread: float = 4.0, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, generator=generator, dtype=dtype) * spread
    return logits.requires_grad_(), torch.randint(c, (n,), generator=generator)


def gradient(values: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(values.sum(), logits)[0]


# -- against independent references ------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0, 2.0, 3.7])
def test_agrees_with_scipy_in_float64(gamma):
    logits, targets = batch(0)
    log_p = log_softmax(logits.detach().double().numpy(), axis=1)
    expected = []
    for row, target in zip(log_p, targets.tolist(), strict=True):
        others = sum(math.exp(value) for c, value in enumerate(row) if c != target)  # 1 - p without cancellation
        expected.append(-(others**gamma) * row[target])
    np.testing.assert_allclose(focal_loss(logits, targets, gamma).detach().numpy(), expected, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(
        focal_loss(logits.detach().double(), targets, gamma).numpy(), expected, rtol=1e-9, atol=1e-15
    )


def test_numbers_worked_by_hand():
    # Two equal logits: p = 1/2, loss = (1/2)**2 * log 2. Odds of 3 to 1: p = 3/4, and 1/4 for the other class.
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [math.log(3), 0.0]])
    expected = torch.tensor([math.log(2) / 4, math.log(4 / 3) / 16, math.log(4) * 9 / 16])
    torch.testing.assert_close(focal_loss(logits, torch.tensor([0, 0, 1]), 2.0), expected)


def test_gradient_in_closed_form():
    # With q = 1 - p: d loss / d z = (gamma q**(gamma-1) p log p - q**gamma) * (onehot - softmax).
    logits, targets = batch(1, dtype=torch.float64)
    gamma = 1.5
    soft = logits.detach().softmax(1)
    p = soft.gather(1, targets[:, None])
    outer = gamma * (1 - p) ** (gamma - 1) * p * p.log() - (1 - p) ** gamma
    expected = outer * (F.one_hot(targets, logits.shape[1]) - soft)
    torch.testing.assert_close(gradient(focal_loss(logits, targets, gamma), logits), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_gradcheck(gamma):
    logits, targets = batch(2, n=5, c=4, spread=2.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: focal_loss(z, targets, gamma), (logits,))
    assert torch.autograd.gradgradcheck(lambda z: focal_loss(z, targets, gamma), (logits,))


# -- properties ----------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 9), c=st.integers(1, 12), spread=st.floats(0, 200))
def test_gamma_zero_is_cross_entropy_bit_for_bit(seed, n, c, spread):
    logits, targets = batch(seed, n, c, spread)
    ours, theirs = focal_loss(logits, targets, 0.0), F.cross_entropy(logits, targets, reduction="none")
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient(ours, logits), gradient(theirs, logits))


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 9),
    c=st.integers(1, 12),
    spread=st.sampled_from([0.0, 1.0, 20.0, 1e3, 1e6, 1e30]),
    gamma=st.floats(0, 8),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_finite_non_negative_and_at_most_cross_entropy(seed, n, c, spread, gamma, dtype):
    logits, targets = batch(seed, n, c, spread, dtype)
    values = focal_loss(logits, targets, gamma)
    assert values.shape == (n,) and values.dtype == dtype
    assert torch.isfinite(values).all() and (values >= 0).all()
    assert (values <= F.cross_entropy(logits, targets, reduction="none")).all()
    assert torch.isfinite(gradient(values, logits)).all()


@pytest.mark.parametrize("margin", [2.0, 6.0, 10.0, 13.0, 15.0])
def test_no_digits_are_lost_near_certainty(margin):
    # What float32's cross-entropy still resolves, 1 - p must keep; 1 - exp(log p) would lose up to all of it.
    logits, target = torch.tensor([[margin, 0.0]]), torch.tensor([0])
    surprise = F.cross_entropy(logits, target).double()
    expected = torch.expm1(-surprise) ** 2 * surprise
    torch.testing.assert_close(focal_loss(logits, target, 2.0)[0].double(), expected, rtol=1e-6, atol=0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), lower=st.floats(0, 4), more=st.floats(0, 4), shift=st.floats(-5, 5))
def test_falls_with_gamma_and_ignores_a_common_shift(seed, lower, more, shift):
    logits, targets = batch(seed, dtype=torch.float64)
    values = focal_loss(logits, targets, lower)
    assert (focal_loss(logits, targets, lower + more) <= values + 1e-12).all()
    torch.testing.assert_close(focal_loss(logits + shift, targets, lower), values)


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 0.5, 0.99, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("margin", [0.0, 1e-4, 10.0, 15.5, 16.5, 17.5, 90.0, 110.0, 1e4, 1e38])
def test_finite_all_the_way_to_certainty_and_to_certain_error(gamma, margin):
    # float32 reaches p = 1 exactly between a margin of 16 and 17; exp underflows at about 104.
    logits = torch.tensor([[margin, 0.0], [margin, 0.0], [0.0, -margin]], requires_grad=True)
    values = focal_loss(logits, torch.tensor([0, 1, 0]), gamma)
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient(values, logits)).all()


@pytest.mark.parametrize("gamma", [0.5, 2.0, 9.0])
@pytest.mark.parametrize("logit", [-3.4e38, -math.inf])
def test_gradient_at_an_impossible_target_is_that_of_cross_entropy(gamma, logit):
    logits, targets = torch.tensor([[logit, 0.0, 0.0]], requires_grad=True), torch.tensor([0])
    values = [focal_loss(logits, targets, gamma), F.cross_entropy(logits, targets, reduction="none")]
    assert torch.equal(*values)
    assert torch.equal(*(gradient(value, logits) for value in values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_curve_has_no_step_at_the_clamp(dtype):
    losses = torch.tensor([99.9, 100.0, 100.1], dtype=dtype)
    logits = torch.stack([losses, torch.zeros(3, dtype=dtype)], 1).requires_grad_()
    values = focal_loss(logits, torch.ones(3, dtype=torch.int64), 2.0)
    assert torch.equal(values, losses)
    assert torch.equal(gradient(values, logits), torch.tensor([[1, -1]] * 3, dtype=dtype))


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
def test_a_certain_row_is_zero_and_leaves_the_others_alone(gamma):
    logits, targets = batch(3)
    sure = torch.cat([logits, torch.tensor([[1e3] + [0.0] * 6])])
    with_sure = focal_loss(sure, torch.cat([targets, torch.tensor([0])]), gamma)
    assert with_sure[-1] == 0
    assert torch.equal(with_sure[:-1], focal_loss(logits, targets, gamma))
    assert torch.equal(gradient(with_sure, logits), gradient(focal_loss(logits, targets, gamma), logits))


def test_gradient_shrinks_to_zero_towards_certainty():
    # The limit at p = 1 is 0 for every gamma > 0, so the masked row continues the curve.
    sizes = []
    for margin in [5.0, 10.0, 14.0, 40.0]:
        logits = torch.tensor([[margin, 0.0]], requires_grad=True)
        sizes.append(gradient(focal_loss(logits, torch.tensor([0]), 0.5), logits).abs().max().item())
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 0 < sizes[-2] < 1e-7


def test_wrong_input_is_refused():
    logits, targets = batch(0)
    for gamma in [-0.1, math.nan]:
        with pytest.raises(ValueError, match="gamma must be at least 0"):
            focal_loss(logits, targets, gamma)
    with pytest.raises(ValueError, match=r"logits must be \[N, C\]"):
        focal_loss(logits[0], targets[0])
