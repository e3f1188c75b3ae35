import copy
import math

import pytest
import torch
import torch.nn.functional as F
from ltcore_tau_norm import TauNorm, TauNormOptions
from pydantic import ValidationError
from torch import nn

from ltcore import CalibratedClassifier


def trained(bias: bool = True) -> nn.Linear:
    """A classifier whose norms fall from class to class, as after plain training on a long tail."""
    torch.manual_seed(0)
    classifier = nn.Linear(6, 4, bias=bias)
    with torch.no_grad():
        classifier.weight.mul_(torch.tensor([8.0, 4.0, 2.0, 0.5])[:, None])
        if bias:
            classifier.bias.copy_(torch.tensor([3.0, 1.0, -1.0, 0.5]))
    return classifier


def calibrate(classifier: nn.Module, **options: object) -> nn.Module:
    return TauNorm(TauNormOptions(**options)).post_calibrate(classifier=classifier)


def test_defaults_and_bounds():
    assert TauNorm().options.model_dump() == {"tau": 1.0, "bias": "keep"}
    for wrong in [{"tau": -0.1}, {"tau": math.inf}, {"bias": "halve"}, {"tua": 1.0}]:
        with pytest.raises(ValidationError):
            TauNormOptions(**wrong)
    assert all(field.description for field in TauNormOptions.model_fields.values())


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("has_bias", "option"), [(True, "keep"), (True, "drop"), (False, "keep"), (False, "drop")])
def test_logits_are_those_of_the_formula(n, tau, has_bias, option):
    classifier, pooled = trained(has_bias), torch.randn(n, 6, generator=torch.Generator().manual_seed(1))
    expected = torch.empty(n, 4)
    for i in range(n):
        for c in range(4):
            w = classifier.weight[c].detach()
            expected[i, c] = pooled[i] @ w / math.sqrt(sum(v * v for v in w.tolist())) ** tau
            if has_bias and option == "keep":
                expected[i, c] += classifier.bias[c].detach()
    calibrated = calibrate(classifier, tau=tau, bias=option)
    torch.testing.assert_close(calibrated(pooled), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(F.linear(pooled, calibrated.weight, calibrated.bias), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_tau_zero_is_the_identity_bit_for_bit(bias):
    classifier, pooled = trained(bias), torch.randn(7, 6)
    assert torch.equal(calibrate(classifier, tau=0)(pooled), classifier(pooled))


def test_tau_one_makes_the_norms_one():
    torch.testing.assert_close(calibrate(trained()).weight.norm(dim=1), torch.ones(4))


def test_a_rare_class_gains():
    # The same direction and half the length: class 1 never wins before, and ties after.
    classifier = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[2.0, 0.0], [0.8, 0.6]]))
    pooled = torch.tensor([[0.8, 0.6]])
    assert classifier(pooled).argmax() == 0
    assert calibrate(classifier)(pooled).argmax() == 1


@pytest.mark.parametrize("option", ["keep", "drop"])
def test_an_empty_row_gives_no_nan(option):
    classifier = trained()
    with torch.no_grad():
        classifier.weight[2] = 0
    logits = calibrate(classifier, bias=option)(torch.randn(3, 6))
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[:, 2], torch.full((3,), -1.0 if option == "keep" else 0.0))


def test_the_classifier_is_left_alone_and_the_result_is_plain_data():
    classifier = trained()
    before = copy.deepcopy(classifier.state_dict())
    calibrated = copy.deepcopy(calibrate(classifier, tau=0.5))
    assert not calibrated.scale.requires_grad and not calibrated.shift.requires_grad
    assert all(torch.equal(value, classifier.state_dict()[key]) for key, value in before.items())


def test_it_reads_weight_and_bias_as_they_are_applied():
    # After another calibration the norms are the calibrated ones, and its shift is the bias that is kept.
    inner = CalibratedClassifier(trained(), scale=torch.tensor([1.0, 2.0, 3.0, 4.0]), shift=torch.arange(4.0))
    pooled = torch.randn(3, 6)
    expected = F.linear(pooled, F.normalize(inner.weight), inner.bias)
    torch.testing.assert_close(calibrate(inner)(pooled), expected, rtol=1e-5, atol=1e-5)


def test_a_classifier_with_no_bias_attribute_works():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))

        def forward(self, pooled: torch.Tensor) -> torch.Tensor:
            return pooled @ self.weight.T

    torch.testing.assert_close(calibrate(Bare())(torch.tensor([[1.0, 1.0]])), torch.tensor([[1.4]]))
