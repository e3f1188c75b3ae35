import pytest
import torch
from torch import nn

from ltcore.contract.classifier import CalibratedClassifier, scale_weights

POOLED = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
SCALE, SHIFT = torch.tensor([0.5, 2.0, 3.0]), torch.tensor([1.0, -1.0, 0.25])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scale", "shift"), [(SCALE, SHIFT), (1.0, SHIFT), (SCALE, 0.0), (2.0, torch.tensor(3.0))])
def test_weight_and_bias_are_as_applied(bias, scale, shift):
    inner = nn.Linear(4, 3, bias=bias)
    outer = CalibratedClassifier(inner, scale, shift)
    torch.testing.assert_close(outer(POOLED), inner(POOLED) * scale + shift)
    torch.testing.assert_close(POOLED @ outer.weight.T + outer.bias, outer(POOLED))
    assert outer.weight.shape == (3, 4) and outer.bias.shape == (3,)


def test_wrappers_nest():
    inner = nn.Linear(4, 3)
    outer = CalibratedClassifier(CalibratedClassifier(inner, SCALE, SHIFT), SHIFT, SCALE)
    torch.testing.assert_close(outer(POOLED), (inner(POOLED) * SCALE + SHIFT) * SHIFT + SCALE)
    torch.testing.assert_close(POOLED @ outer.weight.T + outer.bias, outer(POOLED))


def test_by_default_it_changes_nothing():
    inner = nn.Linear(4, 3)
    outer = CalibratedClassifier(inner)
    assert torch.equal(outer(POOLED), inner(POOLED)) and torch.equal(outer.weight, inner.weight)


def test_it_is_saved_with_what_it_wraps_and_follows_its_type():
    outer = CalibratedClassifier(nn.Linear(4, 3).double(), SCALE, SHIFT)
    assert outer.scale.dtype == outer.shift.dtype == torch.float64
    assert set(outer.state_dict()) == {"scale", "shift", "classifier.weight", "classifier.bias"}
    assert not outer.scale.requires_grad and outer(POOLED.double()).dtype == torch.float64


def test_a_scale_is_a_copy():
    scale = SCALE.clone()
    outer = CalibratedClassifier(nn.Linear(4, 3), scale)
    scale.zero_()
    assert torch.equal(outer.scale, SCALE)


@pytest.mark.parametrize("keep_bias", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_are_scaled_and_the_bias_is_not(bias, keep_bias):
    linear, x = nn.Linear(4, 3, bias=bias).double(), torch.randn(5, 4).double()
    scale = torch.tensor([0.5, 1.0, 2.0]).double()
    expected = x @ (scale[:, None] * linear.weight).T + (linear.bias if bias and keep_bias else 0)
    found = scale_weights(linear, scale, keep_bias)
    torch.testing.assert_close(found(x), expected)
    torch.testing.assert_close(x @ found.weight.T + found.bias, expected)
