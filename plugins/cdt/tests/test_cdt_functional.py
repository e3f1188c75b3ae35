import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from ltcore_cdt import count_scale, temperatures, tempered_logits
from scipy.special import log_softmax

CIFAR10_IM100 = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])
counts_of = st.lists(st.integers(1, 10**6), min_size=1, max_size=20).map(torch.tensor)


def batch(seed: int, n: int, c: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=generator, dtype=dtype) * 3, torch.randint(c, (n,), generator=generator)


# -- against independent references ------------------------------------------------------------------------------


def test_numbers_worked_by_hand():
    assert temperatures(CIFAR10_IM100)[-1].item() == pytest.approx(2.5119, abs=5e-5)  # 100 ** 0.2
    torch.testing.assert_close(temperatures(torch.tensor([81, 16, 1]), 0.25), torch.tensor([1.0, 1.5, 3.0]))
    torch.testing.assert_close(count_scale(torch.tensor([100, 4, 1]), 0.5), torch.tensor([0.1, 0.5, 1.0]))
    torch.testing.assert_close(count_scale(torch.tensor([100, 4, 1]), 1.0), torch.tensor([0.01, 0.25, 1.0]))


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.2, 0.3, 0.7, 1.0])
def test_agree_with_the_formulas_in_float64(strength):
    counts = CIFAR10_IM100.tolist()
    expected = [(max(counts) / n) ** strength for n in counts]
    np.testing.assert_allclose(temperatures(CIFAR10_IM100, strength).numpy(), expected, rtol=1e-7)
    np.testing.assert_allclose(
        count_scale(CIFAR10_IM100, strength).numpy(), [1 / n**strength for n in counts], rtol=1e-7
    )


@pytest.mark.parametrize("gamma", [0.1, 0.2, 0.3])
def test_the_loss_is_equation_3(gamma):
    logits, targets = batch(0, 12, 10)
    counts = CIFAR10_IM100.double().numpy()
    tempered = logits.double().numpy() / (counts.max() / counts) ** gamma
    expected = -log_softmax(tempered, axis=1)[np.arange(12), targets.numpy()]
    ours = F.cross_entropy(tempered_logits(logits, temperatures(CIFAR10_IM100, gamma)), targets, reduction="none")
    np.testing.assert_allclose(ours.numpy(), expected, rtol=2e-5, atol=2e-6)


def test_gradient_in_closed_form():
    # d loss / d z_c = (softmax_c - [c is the target]) / a_c.
    logits, targets = batch(1, 6, 10, torch.float64)
    a = temperatures(CIFAR10_IM100, 0.3).double()
    soft = (logits / a).softmax(1)
    logits.requires_grad_()
    F.cross_entropy(tempered_logits(logits, a), targets, reduction="sum").backward()
    torch.testing.assert_close(logits.grad, (soft - F.one_hot(targets, 10)) / a)
    assert torch.autograd.gradcheck(lambda z: tempered_logits(z, a), (logits,))


# -- properties ----------------------------------------------------------------------------------------------------


@given(counts=counts_of, gamma=st.floats(0, 2))
def test_temperatures_are_one_at_the_head_and_never_fall_towards_the_tail(counts, gamma):
    a = temperatures(counts, gamma)
    assert a.dtype == torch.float32 and a.shape == counts.shape and torch.isfinite(a).all()
    assert (a >= 1).all() and a[counts.argmax()] == 1
    assert (a[counts.argsort()].diff() <= 0).all()


@given(counts=counts_of, tau=st.floats(0, 1))
def test_scales_are_at_most_one_and_never_rise_with_the_count(counts, tau):
    scale = count_scale(counts, tau)
    assert scale.dtype == torch.float32 and scale.shape == counts.shape
    assert (scale > 0).all() and (scale <= 1).all()
    assert (scale[counts.argsort()].diff() <= 0).all()


@given(counts=counts_of)
def test_zero_gives_ones(counts):
    assert torch.equal(temperatures(counts, 0.0), torch.ones(len(counts)))
    assert torch.equal(count_scale(counts, 0.0), torch.ones(len(counts)))


@given(counts=counts_of, strength=st.floats(0, 1))
def test_both_are_the_same_powers_up_to_a_common_factor(counts, strength):
    ratio = temperatures(counts, strength) / count_scale(counts, strength)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-5, atol=0)


def test_wrong_input_is_refused():
    for gamma in [-0.1, math.nan]:
        with pytest.raises(ValueError, match="gamma must be at least 0"):
            temperatures(CIFAR10_IM100, gamma)
    for tau in [-0.1, 1.1, math.nan]:
        with pytest.raises(ValueError, match=r"tau must be in \[0, 1\]"):
            count_scale(CIFAR10_IM100, tau)
    for function in [temperatures, count_scale]:
        with pytest.raises(ValueError, match="no training images of class 1, 3: "):
            function(torch.tensor([5, 0, 1, 0]))
        with pytest.raises(ValueError, match="0, 1, 2, 3, 4, 5, 6, 7 and 4 more"):
            function(torch.zeros(12))
