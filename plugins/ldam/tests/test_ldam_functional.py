import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ltcore_ldam import cosine_logits, ldam_margins, subtract_margin, unit_rows
from scipy.spatial.distance import cdist
from scipy.special import log_softmax

CIFAR10 = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- against independent references ------------------------------------------------------------------------------------


def test_published_margins_of_cifar10_at_imbalance_100():
    margins = ldam_margins(CIFAR10)
    assert margins.dtype == torch.float32
    assert f"{margins[0].item():.6f}" == "0.158114" and f"{margins.sum().item():.5f}" == "3.00613"
    assert margins[-1] == 0.5


@pytest.mark.parametrize("max_margin", [0.3, 0.5])
def test_margins_agree_with_the_authors_formula_in_numpy(max_margin):
    m = 1.0 / np.sqrt(np.sqrt(CIFAR10.numpy().astype(np.float64)))
    np.testing.assert_allclose(ldam_margins(CIFAR10, max_margin).numpy(), m * (max_margin / m.max()), rtol=1e-7)


def test_margins_worked_by_hand():
    # 16 = 2**4 and 81 = 3**4 times as many images: half and a third of the margin.
    torch.testing.assert_close(ldam_margins(torch.tensor([81, 16, 1]), 0.6), torch.tensor([0.2, 0.3, 0.6]))


def test_the_whole_loss_agrees_with_scipy_in_float64():
    features, weight, targets = rows(0, 12, 5), rows(1, 10, 5), torch.arange(12) % 10
    cosines = 1 - cdist(features.double().numpy(), weight.double().numpy(), "cosine")
    shifted = cosines.copy()
    for i, target in enumerate(targets.tolist()):
        shifted[i, target] -= 0.5 * (50 / int(CIFAR10[target])) ** 0.25
    expected = -log_softmax(30 * shifted, axis=1)[np.arange(12), targets.numpy()]
    logits = cosine_logits(features, weight)
    np.testing.assert_allclose(logits.numpy(), 30 * cosines, atol=2e-5)
    ours = F.cross_entropy(subtract_margin(logits, targets, 30 * ldam_margins(CIFAR10)), targets, reduction="none")
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_logits_worked_by_hand():
    # Directions 45 degrees apart, and norms that do not matter.
    logits = cosine_logits(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.1, 0.0], [5.0, 5.0], [0.0, 7.0]]), 10.0)
    torch.testing.assert_close(logits, torch.tensor([[10.0, 10 / math.sqrt(2), 0.0]]))
    shifted = subtract_margin(logits, torch.tensor([1]), torch.tensor([9.0, 2.0, 9.0]))
    torch.testing.assert_close(shifted, torch.tensor([[10.0, 10 / math.sqrt(2) - 2, 0.0]]))


def test_gradcheck():
    features, weight = rows(2, 4, 3, dtype=torch.float64), rows(3, 5, 3, dtype=torch.float64)
    margins, targets = torch.rand(5, dtype=torch.float64), torch.tensor([0, 4, 4, 2])

    def loss(x, w):
        return F.cross_entropy(subtract_margin(cosine_logits(x, w, 4.0), targets, margins), targets)

    inputs = (features.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs) and torch.autograd.gradgradcheck(loss, inputs)


# -- properties --------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 10**7), min_size=1, max_size=20), max_margin=st.floats(0, 2))
def test_margins_fall_with_the_count_and_the_rarest_has_the_largest(counts, max_margin):
    margins = ldam_margins(torch.tensor(counts), max_margin)
    assert margins.max() == torch.tensor(max_margin) == margins[int(np.argmin(counts))]
    assert (margins[np.argsort(counts, kind="stable")].diff() <= 0).all() and (margins >= 0).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 9), c=st.integers(1, 12))
def test_only_the_target_moves_and_the_gradient_passes_as_it_is(seed, n, c):
    logits, margins = rows(seed, n, c).requires_grad_(), rows(seed, c).abs()
    targets = torch.randint(c, (n,), generator=torch.Generator().manual_seed(seed))
    before = logits.detach().clone()
    shifted = subtract_margin(logits, targets, margins)
    hit = F.one_hot(targets, c).bool()
    assert torch.equal(shifted[~hit], before[~hit]) and torch.equal(logits, before)
    assert torch.equal(shifted[hit], before[hit] - margins[targets])
    upstream = rows(seed + 1, n, c)
    assert torch.equal(torch.autograd.grad(shifted, logits, upstream)[0], upstream)
    assert torch.equal(subtract_margin(logits, targets, torch.zeros(c)), logits)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), power=st.integers(-20, 20))
def test_norms_do_not_matter(seed, power):
    features, weight = rows(seed, 6, 4), rows(seed + 1, 3, 4)
    logits = cosine_logits(features, weight)
    assert (logits.abs() <= 30 + 1e-4).all()
    torch.testing.assert_close(cosine_logits(features * 2.0**power, weight * 2.0**-power), logits)


@pytest.mark.parametrize("tiny", [0.0, 1e-30, 1e-20])
def test_rows_without_direction_give_finite_values_and_gradients(tiny):
    features = torch.tensor([[tiny, 0.0, 0.0], [1.0, 2.0, 2.0]], requires_grad=True)
    weight = rows(4, 5, 3).requires_grad_()
    logits = cosine_logits(features, weight)
    assert torch.isfinite(logits).all() and logits[0].abs().max() < 1e-10
    for gradient in torch.autograd.grad(F.cross_entropy(logits, torch.tensor([0, 1])), (features, weight)):
        assert torch.isfinite(gradient).all() and gradient.abs().max() < 100
    torch.testing.assert_close(unit_rows(features)[1], torch.tensor([1 / 3, 2 / 3, 2 / 3]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalised_in_float32(dtype):
    x = (rows(5, 7, 300) * 100).to(dtype)  # the squares' sum does not fit into float16
    unit = unit_rows(x)
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(7))
    assert unit_rows(x.double()).dtype == torch.float64


def test_wrong_input_is_refused():
    for wrong in [-0.1, math.nan]:
        with pytest.raises(ValueError, match="max_margin must be at least 0"):
            ldam_margins(CIFAR10, wrong)
    with pytest.raises(ValueError, match="no training images of class 1, 3:"):
        ldam_margins(torch.tensor([3, 0, 2, 0]))
