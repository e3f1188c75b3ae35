import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ltcore_deferred import effective_number_weights

CIFAR10_IM100 = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])
counts_of = st.lists(st.integers(1, 10**6), min_size=1, max_size=20).map(torch.tensor)


def test_published_counts():
    expected = [0.0506, 0.0769, 0.1211, 0.1950, 0.3188, 0.5246, 0.8683, 1.4426, 2.4092, 3.9927]
    np.testing.assert_allclose(effective_number_weights(CIFAR10_IM100).numpy(), expected, atol=5e-5)


def test_numbers_worked_by_hand():
    # beta 1/2: 1 - 1/2 and 1 - 1/8, so the weights are as 7 to 4, and sum to 2.
    torch.testing.assert_close(effective_number_weights(torch.tensor([3, 1]), 0.5), torch.tensor([8 / 11, 14 / 11]))


@pytest.mark.parametrize("beta", [0.1, 0.9, 0.99, 0.999, 0.9999, 1 - 1e-9, 1 - 1e-13])
def test_agrees_with_exact_fractions(beta):
    exact = [(1 - Fraction(beta)) / (1 - Fraction(beta) ** n) for n in [200, 31, 7, 1]]
    expected = [float(len(exact) * weight / sum(exact)) for weight in exact]
    ours = effective_number_weights(torch.tensor([200, 31, 7, 1]), beta)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=3e-7)


@given(counts=counts_of, beta=st.floats(0, 1, exclude_max=True))
def test_positive_sum_to_the_number_of_classes_and_never_favour_the_larger_class(counts, beta):
    weights = effective_number_weights(counts, beta)
    assert weights.dtype == torch.float32 and weights.shape == counts.shape
    assert torch.isfinite(weights).all() and (weights > 0).all()
    assert math.isclose(weights.double().sum().item(), len(counts), rel_tol=1e-5)
    assert (weights[counts.argsort()].diff() <= 0).all()


@given(counts=counts_of)
def test_beta_zero_and_balanced_counts_give_ones(counts):
    assert torch.equal(effective_number_weights(counts, 0.0), torch.ones(len(counts)))
    same = torch.full_like(counts, int(counts[0]))
    torch.testing.assert_close(effective_number_weights(same, 0.999), torch.ones(len(counts)))


def test_towards_one_the_weights_are_inverse_counts():
    inverse = 1 / CIFAR10_IM100.double()
    expected = (inverse * 10 / inverse.sum()).float()
    torch.testing.assert_close(effective_number_weights(CIFAR10_IM100, 1 - 1e-12), expected)


def test_wrong_input_is_refused():
    for beta in [-0.1, 1.0, math.nan]:
        with pytest.raises(ValueError, match=r"beta must be in \[0, 1\)"):
            effective_number_weights(CIFAR10_IM100, beta)
    with pytest.raises(ValueError, match="no training images of class 1, 3: "):
        effective_number_weights(torch.tensor([5, 0, 1, 0]))
    with pytest.raises(ValueError, match="no training images of class 0, 1, 2, 3, 4, 5, 6, 7: "):  # all of them
        effective_number_weights(torch.zeros(8))
    with pytest.raises(ValueError, match="0, 1, 2, 3, 4, 5, 6, 7 and 4 more"):
        effective_number_weights(torch.zeros(12))
