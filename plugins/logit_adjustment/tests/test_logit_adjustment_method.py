import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from ltcore_logit_adjustment import BalancedSoftmax, LogitAdjustment, LogitAdjustmentOptions, class_log_prior
from pydantic import ValidationError
from torch import nn

from ltcore import DataError

COUNTS = torch.tensor([90, 9, 1])
CONTEXT = SimpleNamespace(class_counts=COUNTS, num_classes=3)


def started(method):
    method.on_run_start(context=CONTEXT)
    return method


def make(**options):
    return started(LogitAdjustment(LogitAdjustmentOptions(**options)))


def test_defaults_and_bounds():
    assert LogitAdjustment().options.tau == 1.0
    assert not BalancedSoftmax().options.model_dump()
    for wrong in [{"tau": -0.1}, {"tau": math.inf}, {"Tau": 1.0}]:
        with pytest.raises(ValidationError):
            LogitAdjustmentOptions(**wrong)
    assert all(field.description for field in LogitAdjustmentOptions.model_fields.values())


@pytest.mark.parametrize("n", [1, 6])
def test_training_logits(n):
    logits = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([0.90, 0.09, 0.01])
    torch.testing.assert_close(make(tau=1.5).adjust_logits(logits=logits), logits + 1.5 * shares.log())
    torch.testing.assert_close(started(BalancedSoftmax()).adjust_logits(logits=logits), logits + COUNTS.log())
    assert make(tau=0).adjust_logits(logits=logits) is logits


def test_one_sample_trains_without_nan():
    for method in [make(), started(BalancedSoftmax())]:
        logits = torch.zeros(1, 3, requires_grad=True)
        F.cross_entropy(method.adjust_logits(logits=logits), torch.tensor([2])).backward()
        # softmax of the prior, less the target: the gradient pushes a rare class hardest.
        torch.testing.assert_close(logits.grad, torch.tensor([[0.90, 0.09, -0.99]]))


@pytest.mark.parametrize("bias", [True, False])
def test_post_hoc(bias):
    torch.manual_seed(0)
    classifier, pooled = nn.Linear(4, 3, bias=bias), torch.randn(5, 4)
    before = copy.deepcopy(classifier.state_dict())
    calibrated = make(tau=0.5).post_calibrate(classifier=classifier)
    expected = classifier(pooled) - 0.5 * class_log_prior(COUNTS)
    torch.testing.assert_close(calibrated(pooled), expected)
    torch.testing.assert_close(F.linear(pooled, calibrated.weight, calibrated.bias), expected)
    assert all(torch.equal(value, classifier.state_dict()[key]) for key, value in before.items())
    copy.deepcopy(calibrated)  # nothing in it hangs on a graph


def test_post_hoc_tau_zero_is_the_classifier_and_two_halves_are_one():
    torch.manual_seed(0)
    classifier, pooled = nn.Linear(4, 3), torch.randn(5, 4)
    assert make(tau=0).post_calibrate(classifier=classifier) is classifier
    half = make(tau=0.5)
    twice = half.post_calibrate(classifier=half.post_calibrate(classifier=classifier))
    torch.testing.assert_close(twice(pooled), make().post_calibrate(classifier=classifier)(pooled))


def test_post_hoc_finds_the_balanced_rule():
    # Class-conditional densities N(-1, 1) and N(1, 1), 99 to 1: log posterior odds are 2x + log p1/p0; the balanced
    # boundary is at 0, wherever the prior had put it.
    classifier = nn.Linear(1, 2)
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        classifier.bias.copy_(torch.tensor([0.99, 0.01]).log())
    method = LogitAdjustment()
    method.on_run_start(context=SimpleNamespace(class_counts=torch.tensor([990, 10]), num_classes=2))
    x = torch.tensor([[-0.1], [0.1]])
    assert classifier(x).argmax(1).tolist() == [0, 0]
    assert method.post_calibrate(classifier=classifier)(x).argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize(("method", "buffer"), [(LogitAdjustment, "log_prior"), (BalancedSoftmax, "log_counts")])
def test_state_is_one_buffer_saved_and_restored(method, buffer):
    first = started(method())
    assert list(first.state_dict()) == [buffer] and not list(first.parameters())
    first.state_dict()[buffer].add_(1.0)
    resumed = started(method())
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(getattr(resumed, buffer), getattr(first, buffer))
    assert started(resumed) is resumed  # a second start overwrites, and does not fail


@pytest.mark.parametrize(
    ("method", "name"), [(LogitAdjustment, "logit_adjustment"), (BalancedSoftmax, "balanced_softmax")]
)
def test_a_class_without_images_is_an_error_with_names(method, name):
    with pytest.raises(DataError, match=f"method '{name}': no training images of class 1"):
        method().on_run_start(context=SimpleNamespace(class_counts=torch.tensor([3, 0]), num_classes=2))
