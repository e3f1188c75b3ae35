import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ltcore_tau_norm import tau_norm_scale, tau_normalize


def rows(seed: int, c: int = 6, d: int = 5, spread: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(c, d, generator=torch.Generator().manual_seed(seed), dtype=dtype) * spread


# -- against independent references ------------------------------------------------------------------------------


def test_numbers_worked_by_hand():
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.25], [0.0, 0.0]])  # norms 5, 1/4, 0
    torch.testing.assert_close(tau_norm_scale(weight, 1.0), torch.tensor([0.2, 4.0, 1.0]))
    torch.testing.assert_close(tau_normalize(weight, 1.0), torch.tensor([[0.6, 0.8], [0.0, 1.0], [0.0, 0.0]]))
    root = 1 / math.sqrt(5)
    torch.testing.assert_close(tau_normalize(weight, 0.5), torch.tensor([[3 * root, 4 * root], [0, 0.5], [0.0, 0.0]]))


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.7, 1.0, 2.0])
def test_agrees_with_a_loop_in_float64(tau):
    weight = rows(0)
    expected = []
    for row in weight.double().tolist():
        norm = math.sqrt(math.fsum(value * value for value in row))
        expected.append([value / norm**tau for value in row])
    np.testing.assert_allclose(tau_normalize(weight, tau).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_gradcheck(tau):
    weight = rows(1, 3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: tau_normalize(w, tau), (weight,))


# -- properties ----------------------------------------------------------------------------------------------------


def test_tau_zero_is_the_identity_bit_for_bit():
    weight = torch.cat([rows(2, spread=1e3), torch.zeros(1, 5), rows(3, spread=1e-30)])
    assert torch.equal(tau_normalize(weight, 0.0), weight)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), tau=st.floats(0, 1), spread=st.sampled_from([1e-10, 1e-3, 1.0, 1e3, 1e10]))
def test_norms_become_their_power_and_directions_stay(seed, tau, spread):
    weight = rows(seed, spread=spread, dtype=torch.float64)
    changed = tau_normalize(weight, tau)
    torch.testing.assert_close(changed.norm(dim=1), weight.norm(dim=1) ** (1 - tau))
    torch.testing.assert_close(torch.cosine_similarity(changed, weight, eps=0), torch.ones(6, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), first=st.floats(0, 1), second=st.floats(0, 1))
def test_twice_composes(seed, first, second):
    weight = rows(seed, dtype=torch.float64)
    once = tau_normalize(weight, first + second - first * second)
    torch.testing.assert_close(tau_normalize(tau_normalize(weight, first), second), once)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-39, 1e-30, 1e-20, 1e15])
def test_finite_for_rows_without_length(tau, size):
    weight = torch.full((2, 3), size)
    weight[1] = 1.0
    weight.requires_grad_()
    changed = tau_normalize(weight, tau)
    assert torch.isfinite(changed).all()
    changed.sum().backward()
    assert torch.isfinite(weight.grad[1]).all()
    if size == 0:
        assert torch.equal(changed[0], torch.zeros(3)) and torch.isfinite(weight.grad).all()


def test_wrong_input_is_refused():
    for tau in [-0.1, math.nan]:
        with pytest.raises(ValueError, match="tau must be at least 0"):
            tau_norm_scale(rows(0), tau)
    with pytest.raises(ValueError, match=r"weight must be \[C, D\]"):
        tau_norm_scale(rows(0)[0])
