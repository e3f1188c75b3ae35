import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ltcore_class_balanced import effective_number_weights, inverse_frequency_weights

CIFAR10 = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])
COUNTS = st.lists(st.integers(1, 10**7), min_size=1, max_size=20)


# -- against independent references ------------------------------------------------------------------------------------


def test_published_weights_of_cifar10_at_imbalance_100():
    weights = effective_number_weights(CIFAR10, 0.9999)
    shown = [f"{weight:.4f}" for weight in weights.tolist()]
    assert " ".join(shown) == "0.0506 0.0769 0.1211 0.1950 0.3188 0.5246 0.8683 1.4426 2.4092 3.9927"
    assert weights.dtype == torch.float32


@pytest.mark.parametrize("beta", [0.9, 0.99, 0.999, 0.9999])
def test_agrees_with_the_papers_formula_in_numpy(beta):
    n = CIFAR10.numpy().astype(np.float64)
    w = (1 - beta) / (1 - np.power(beta, n))
    np.testing.assert_allclose(effective_number_weights(CIFAR10, beta).numpy(), w / w.sum() * 10, rtol=1e-6)


@pytest.mark.parametrize("beta", [1e-300, 0.5, 0.9999, 1 - 1e-9, 1 - 1e-12, math.nextafter(1, 0)])
def test_agrees_with_sixty_decimal_digits(beta):
    # The plain formula has lost every digit at 1 - 1e-16, in float32 already at 1 - 1e-8.
    getcontext().prec = 60
    exact = [(1 - Decimal(beta)) / (1 - Decimal(beta) ** n) for n in CIFAR10.tolist()]
    expected = [float(10 * w / sum(exact)) for w in exact]
    np.testing.assert_allclose(effective_number_weights(CIFAR10, beta).numpy(), expected, rtol=1e-7)


def test_effective_numbers_worked_by_hand():
    # beta 1/2: one image counts 1, two count 3/2, so the weights stand 3 to 2.
    torch.testing.assert_close(effective_number_weights(torch.tensor([1, 2]), 0.5), torch.tensor([1.2, 0.8]))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_inverse_frequency_agrees_with_numpy(gamma):
    w = CIFAR10.numpy().astype(np.float64) ** -gamma
    np.testing.assert_allclose(inverse_frequency_weights(CIFAR10, gamma).numpy(), w / w.sum() * 10, rtol=1e-6)


def test_inverse_frequency_worked_by_hand():
    counts = torch.tensor([1, 4])
    torch.testing.assert_close(inverse_frequency_weights(counts, 1.0), torch.tensor([1.6, 0.4]))
    torch.testing.assert_close(inverse_frequency_weights(counts, 0.5), torch.tensor([4 / 3, 2 / 3]))


# -- properties --------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(counts=COUNTS, beta=st.floats(0, 1, exclude_max=True), gamma=st.floats(0, 5))
def test_positive_falling_with_the_count_and_summing_to_the_number_of_classes(counts, beta, gamma):
    for weights in [
        effective_number_weights(torch.tensor(counts), beta),
        inverse_frequency_weights(torch.tensor(counts), gamma),
    ]:
        assert weights.shape == (len(counts),) and (weights > 0).all()
        assert weights.double().sum().item() == pytest.approx(len(counts), rel=1e-5)
        assert (weights[np.argsort(counts, kind="stable")].diff() <= 0).all()


@settings(max_examples=50, deadline=None)
@given(counts=COUNTS)
def test_zero_gives_exactly_ones(counts):
    ones = torch.ones(len(counts))
    assert torch.equal(effective_number_weights(torch.tensor(counts), 0.0), ones)
    assert torch.equal(inverse_frequency_weights(torch.tensor(counts), 0.0), ones)


@pytest.mark.parametrize("classes", [1, 10, 100, 8142])
def test_equal_counts_weigh_the_same(classes):
    counts = torch.full((classes,), 7)
    torch.testing.assert_close(effective_number_weights(counts), torch.ones(classes))
    torch.testing.assert_close(inverse_frequency_weights(counts), torch.ones(classes))


def test_beta_towards_one_is_inverse_frequency():
    torch.testing.assert_close(effective_number_weights(CIFAR10, 1 - 1e-10), inverse_frequency_weights(CIFAR10, 1.0))


def test_large_powers_do_not_overflow():
    assert inverse_frequency_weights(torch.tensor([10**6, 10]), 300.0).tolist() == [0.0, 2.0]


def test_wrong_input_is_refused():
    for beta in [-0.1, 1.0, math.nan]:
        with pytest.raises(ValueError, match=r"beta must be in \[0, 1\)"):
            effective_number_weights(CIFAR10, beta)
    for gamma in [-0.1, math.nan]:
        with pytest.raises(ValueError, match="gamma must be at least 0"):
            inverse_frequency_weights(CIFAR10, gamma)
    for function in [effective_number_weights, inverse_frequency_weights]:
        for value in [0.0, 0.5]:
            with pytest.raises(ValueError, match="no training images of class 1, 3:"):
                function(torch.tensor([3, 0, 2, 0]), value)
