import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ltcore_class_balanced import (
    ClassBalanced,
    ClassBalancedOptions,
    InverseFrequency,
    InverseFrequencyOptions,
    effective_number_weights,
    inverse_frequency_weights,
)
from pydantic import ValidationError

import ltcore
from ltcore import DataError
from ltcore.files.checkpoint import load
from ltcore.testing import write_short_recipe

CONTEXT = SimpleNamespace(class_counts=torch.tensor([24, 16, 8, 4]), num_classes=4)
OFF = {"class_balanced": {"beta": 0}, "inverse_frequency": {"gamma": 0}}


def test_defaults_and_bounds():
    assert ClassBalanced().options.model_dump() == {"beta": 0.9999}
    assert InverseFrequency().options.model_dump() == {"gamma": 0.5}
    for kind, wrong in [
        (ClassBalancedOptions, {"beta": 1.0}),
        (ClassBalancedOptions, {"beta": -0.1}),
        (ClassBalancedOptions, {"gamma": 1.0}),
        (InverseFrequencyOptions, {"gamma": -1}),
        (InverseFrequencyOptions, {"gamma": math.inf}),
    ]:
        with pytest.raises(ValidationError):
            kind(**wrong)
        assert all(field.description for field in kind.model_fields.values())


def test_hooks_are_the_functions_with_their_options():
    counts = CONTEXT.class_counts
    weights = ClassBalanced(ClassBalancedOptions(beta=0.9)).class_weights(context=CONTEXT)
    assert torch.equal(weights, effective_number_weights(counts, 0.9))
    weights = InverseFrequency(InverseFrequencyOptions(gamma=0.5)).class_weights(context=CONTEXT)
    assert torch.equal(weights, inverse_frequency_weights(counts, 0.5))
    assert not ClassBalanced().state_dict() and not InverseFrequency().state_dict()


@pytest.mark.parametrize(("method", "name"), [(ClassBalanced, "class_balanced"), (InverseFrequency, "inverse_freq")])
def test_a_class_without_images_is_an_error_with_names(method, name):
    with pytest.raises(DataError, match=f"method '{name}.*: no training images of class 1"):
        method().class_weights(context=SimpleNamespace(class_counts=torch.tensor([3, 0])))


# -- in a run ----------------------------------------------------------------------------------------------------------

STAGE = {"batch_size": 13, "optimizer": {"lr": 0.05}}  # so that dividing by the number of rows is not exact
COMMON = {
    "data": {"use": "synthetic", "options": {"class_counts": [24, 16, 8, 4], "image_size": 8, "test_per_class": 4}},
    "backbone": {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
    "checkpoint_seconds": 0,
}


def recipe(tmp_path, name, methods, **more):
    """One stage with the methods, a table of their options."""
    table = {key: {"options": options} for key, options in methods.items()}
    return write_short_recipe(tmp_path / f"{name}.yaml", **COMMON, methods=table, stages=[STAGE | more])


def run(file, out, resume=False):
    return ltcore.run(file, out=out / "runs", resume=resume).path


def tensors(path):
    return load(path / "checkpoints" / "stage-0-joint.safetensors")[0]


def losses(path):
    return [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("beside", [{}, {"mixup": {}}, {"focal": {}}], ids=["alone", "mixup", "focal"])
@pytest.mark.parametrize("use", OFF)
def test_zero_is_the_baseline_bit_for_bit(tmp_path, use, beside):
    plain = run(recipe(tmp_path, "plain", beside), tmp_path)
    off = run(recipe(tmp_path, "off", {use: OFF[use], **beside}), tmp_path)
    on = run(recipe(tmp_path, "on", {use: {}, **beside}), tmp_path)
    assert losses(plain) == losses(off) != losses(on)
    expected, found = tensors(plain), tensors(off)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("use", OFF)
def test_the_loss_of_a_step_is_torchs_weighted_cross_entropy(tmp_path, monkeypatch, use):
    seen, real = [], F.cross_entropy

    def record(logits, targets, **more):
        seen.append((logits.detach(), targets))
        return real(logits, targets, **more)

    monkeypatch.setattr("torch.nn.functional.cross_entropy", record)
    path = run(recipe(tmp_path, "r", {use: {}}, epochs=1), tmp_path)
    function = {"class_balanced": effective_number_weights, "inverse_frequency": inverse_frequency_weights}[use]
    weight = function(CONTEXT.class_counts)
    expected = [real(logits, targets, weight=weight).item() for logits, targets in seen]
    assert losses(path) == [pytest.approx(sum(expected) / len(expected), rel=1e-5)]


def test_two_weightings_multiply(tmp_path):
    one = run(recipe(tmp_path, "one", {"inverse_frequency": {"gamma": 1.0}}), tmp_path)
    table = {key: {"use": "inverse_frequency"} for key in "ab"}
    two = run(write_short_recipe(tmp_path / "two.yaml", **COMMON, methods=table, stages=[STAGE]), tmp_path)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


@pytest.mark.parametrize("use", OFF)
def test_a_killed_run_goes_on_exactly(tmp_path, copy_at_checkpoint, use):
    file = recipe(tmp_path, "r", {use: {}})
    copy_at_checkpoint(6, tmp_path / "killed" / "runs" / "r")  # in the second epoch
    whole = run(file, tmp_path)
    copy_at_checkpoint()
    resumed = run(file, tmp_path / "killed", resume=True)
    assert resumed != whole
    with np.load(whole / "predictions.npz") as a, np.load(resumed / "predictions.npz") as b:
        assert np.array_equal(a["logits"], b["logits"])
