import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ltcore_logit_adjustment import (
    adjusted_logits,
    balanced_logits,
    class_log_counts,
    class_log_prior,
    post_hoc_shift,
)
from scipy.special import log_softmax

CIFAR10_IM100 = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])
counts_of = st.lists(st.integers(1, 10**7), min_size=1, max_size=20).map(torch.tensor)


def batch(seed: int, n: int, c: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=generator, dtype=dtype) * 3, torch.randint(c, (n,), generator=generator)


# -- against independent references ------------------------------------------------------------------------------


def test_log_prior_and_log_counts_worked_by_hand():
    torch.testing.assert_close(class_log_prior(torch.tensor([3, 1])), torch.tensor([math.log(0.75), math.log(0.25)]))
    torch.testing.assert_close(class_log_counts(torch.tensor([1, 100])), torch.tensor([0.0, 4.605170186]))
    expected = [math.log(n / 12406) for n in CIFAR10_IM100.tolist()]  # 12406 images, as published
    np.testing.assert_allclose(class_log_prior(CIFAR10_IM100).numpy(), expected, rtol=1e-6)


def test_adjusted_and_post_hoc_worked_by_hand():
    log_prior = torch.tensor([math.log(0.8), math.log(0.2)])
    logits = torch.tensor([[1.0, 1.0]])
    torch.testing.assert_close(
        adjusted_logits(logits, log_prior), torch.tensor([[1 + math.log(0.8), 1 + math.log(0.2)]])
    )
    # A balanced rule at tau 1: logits that are the log posterior of an uninformative image give a tie.
    posterior = log_prior[None]
    torch.testing.assert_close(posterior + post_hoc_shift(log_prior), torch.zeros(1, 2))
    torch.testing.assert_close(post_hoc_shift(log_prior, 0.5), torch.tensor([-math.log(0.8) / 2, -math.log(0.2) / 2]))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.5])
def test_logit_adjusted_loss_agrees_with_its_definition_in_float64(tau):
    # Equation 10's other form: log(1 + sum over y' != y of (p_y' / p_y)**tau * exp(z_y' - z_y)).
    logits, targets = batch(0, 12, 10)
    counts = CIFAR10_IM100.double().numpy()
    expected = []
    for z, y in zip(logits.double().numpy(), targets.tolist(), strict=True):
        rivals = [(counts[k] / counts[y]) ** tau * math.exp(z[k] - z[y]) for k in range(10) if k != y]
        expected.append(math.log1p(sum(rivals)))
    adjusted = adjusted_logits(logits, class_log_prior(CIFAR10_IM100), tau)
    np.testing.assert_allclose(
        F.cross_entropy(adjusted, targets, reduction="none").numpy(), expected, rtol=2e-5, atol=2e-6
    )


def test_balanced_softmax_agrees_with_its_definition_in_float64():
    # p_y = n_y exp(z_y) / sum over c of n_c exp(z_c), with explicit loops.
    logits, targets = batch(1, 12, 10)
    expected = []
    for z, y in zip(logits.double().tolist(), targets.tolist(), strict=True):
        terms = [n * math.exp(value) for n, value in zip(CIFAR10_IM100.tolist(), z, strict=True)]
        expected.append(-math.log(terms[y] / math.fsum(terms)))
    balanced = balanced_logits(logits, class_log_counts(CIFAR10_IM100))
    np.testing.assert_allclose(
        F.cross_entropy(balanced, targets, reduction="none").numpy(), expected, rtol=2e-5, atol=2e-6
    )
    np.testing.assert_allclose(
        -log_softmax(balanced.double().numpy(), axis=1)[np.arange(12), targets.numpy()], expected, rtol=2e-5, atol=2e-6
    )


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_gradcheck(tau):
    logits, targets = batch(2, 4, 10, torch.float64)
    log_prior = class_log_prior(CIFAR10_IM100)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: F.cross_entropy(adjusted_logits(z, log_prior, tau), targets), (logits,))
    assert torch.autograd.gradcheck(lambda z: balanced_logits(z, log_prior), (logits,))


# -- properties ----------------------------------------------------------------------------------------------------


def test_tau_zero_is_the_same_tensor():
    logits, _ = batch(3, 4, 10)
    assert adjusted_logits(logits, class_log_prior(CIFAR10_IM100), 0.0) is logits


@settings(max_examples=50, deadline=None)
@given(counts=counts_of)
def test_prior_is_a_distribution_in_the_order_of_the_counts(counts):
    prior = class_log_prior(counts)
    assert prior.dtype == torch.float32 and prior.shape == counts.shape
    assert torch.isfinite(prior).all() and (prior <= 0).all()
    assert math.isclose(prior.double().exp().sum().item(), 1.0, rel_tol=1e-5)
    assert (prior.argsort(stable=True) == counts.argsort(stable=True)).all() or len(set(counts.tolist())) > len(
        set(prior.tolist())
    )  # counts that differ by less than float32 resolves may tie


@settings(max_examples=50, deadline=None)
@given(counts=counts_of, seed=st.integers(0, 2**31), n=st.integers(1, 5))
def test_balanced_softmax_is_logit_adjustment_at_tau_one(counts, seed, n):
    logits, targets = batch(seed, n, len(counts), torch.float64)
    losses = [
        F.cross_entropy(balanced_logits(logits, class_log_counts(counts)), targets, reduction="none"),
        F.cross_entropy(adjusted_logits(logits, class_log_prior(counts), 1.0), targets, reduction="none"),
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    assert torch.isfinite(losses[0]).all()


@settings(max_examples=50, deadline=None)
@given(counts=counts_of, seed=st.integers(0, 2**31), tau=st.floats(0, 4))
def test_post_hoc_undoes_training(counts, seed, tau):
    logits, _ = batch(seed, 3, len(counts), torch.float64)
    prior = class_log_prior(counts)
    torch.testing.assert_close(
        adjusted_logits(logits, prior, tau) + post_hoc_shift(prior, tau), logits, atol=1e-5, rtol=0
    )


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 1000), c=st.integers(1, 12), seed=st.integers(0, 2**31), tau=st.floats(0, 4))
def test_balanced_counts_change_no_probability(count, c, seed, tau):
    logits, _ = batch(seed, 2, c, torch.float64)
    counts = torch.full((c,), count)
    for changed in [
        adjusted_logits(logits, class_log_prior(counts), tau),
        balanced_logits(logits, class_log_counts(counts)),
    ]:
        torch.testing.assert_close(changed.softmax(1), logits.softmax(1))


@pytest.mark.parametrize("function", [class_log_prior, class_log_counts])
def test_a_class_without_images_is_named(function):
    with pytest.raises(ValueError, match="no training images of class 1, 3: "):
        function(torch.tensor([5, 0, 1, 0]))
    with pytest.raises(ValueError, match="0, 1, 2, 3, 4, 5, 6, 7 and 4 more"):
        function(torch.zeros(12, dtype=torch.int64))
