from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from ltcore_mislas import LabelAwareSmoothing, LabelAwareSmoothingOptions, label_aware_smoothing_loss, smoothing_factors
from pydantic import ValidationError

import ltcore

COUNTS = torch.tensor([110, 60, 10])


def started(**options):
    method = LabelAwareSmoothing(LabelAwareSmoothingOptions(**options))
    method.on_run_start(SimpleNamespace(class_counts=COUNTS))
    return method


def test_defaults_and_bounds():
    options = LabelAwareSmoothing().options
    assert options.model_dump() == {"head": 0.4, "tail": 0.1, "form": "concave", "spread": "others"}
    for wrong in [{"head": 1.0}, {"tail": -0.1}, {"form": "round"}, {"smoothing": 0.1}, {"spread": "none"}]:
        with pytest.raises(ValidationError):
            LabelAwareSmoothingOptions(**wrong)
    assert all(field.description for field in LabelAwareSmoothingOptions.model_fields.values())


@pytest.mark.parametrize("spread", ["others", "all"])
@pytest.mark.parametrize("n", [1, 6])
def test_hook_is_the_function_with_the_options(n, spread):
    logits, targets = torch.randn(n, 3), torch.arange(n) % 3
    method = started(head=0.3, tail=0.2, form="linear", spread=spread)
    expected = label_aware_smoothing_loss(logits, targets, smoothing_factors(COUNTS, 0.3, 0.2, "linear"), spread)
    assert torch.equal(method.compute_loss(logits, targets), expected)
    assert list(method.state_dict()) == ["factors"]


@pytest.mark.parametrize("spread", ["others", "all"])
def test_no_smoothing_is_cross_entropy_bit_for_bit(spread):
    logits, targets = torch.randn(8, 3), torch.arange(8) % 3
    loss = started(head=0, tail=0, spread=spread).compute_loss(logits, targets)
    assert torch.equal(loss, F.cross_entropy(logits, targets, reduction="none"))


RECIPE = """
data: {use: synthetic, options: {class_counts: [60, 24, 8, 4], image_size: 8, test_per_class: 10, noise: 20}}
backbone: {use: cifar_resnet, options: {depth: 8, width: 4}}
METHODS
stages:
  - {name: joint, epochs: 12, batch_size: 16, methods: [LIST], optimizer: {name: sgd, lr: 0.1, momentum: 0.9}}
"""


def trained(tmp_path, methods="", active=""):
    path = tmp_path / f"r{len(methods)}.yaml"
    path.write_text(RECIPE.replace("METHODS", methods).replace("LIST", active))
    return ltcore.run(path, out=tmp_path).result


def test_a_training_is_less_sure_of_head_classes(tmp_path):
    """What smoothing is for: confidence. A network trained with it is less sure than with cross-entropy."""
    import numpy as np

    plain = trained(tmp_path)
    smooth = trained(tmp_path, "methods: {las: {use: label_aware_smoothing}}", "las")
    zero = trained(tmp_path, "methods: {las: {use: label_aware_smoothing, options: {head: 0, tail: 0}}}", "las")
    assert zero["before_calibration"] == plain["before_calibration"]

    def confidence(recipe):
        (found,) = (tmp_path / recipe).glob("*/predictions.npz")
        logits, targets = np.load(found)["logits"], np.load(found)["targets"]
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return (odds.max(1) / odds.sum(1))[targets == 0].mean()

    assert smooth["recipe"] != plain["recipe"]
    assert confidence(smooth["recipe"]) < confidence(plain["recipe"]) - 0.1
