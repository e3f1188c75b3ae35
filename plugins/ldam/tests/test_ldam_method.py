import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ltcore_ldam import LDAM, LDAMOptions, NormalisedClassifier, cosine_logits, ldam_margins
from pydantic import ValidationError
from torch import nn

import ltcore
from ltcore import DataError
from ltcore.files.checkpoint import load
from ltcore.testing import write_short_recipe

COUNTS = torch.tensor([81, 16, 1])


def made(**options):
    method = LDAM(LDAMOptions(**options))
    method.on_run_start(context=SimpleNamespace(class_counts=COUNTS, num_classes=3))
    return method


def test_defaults_and_bounds():
    assert LDAM().options.model_dump() == {"max_margin": 0.5, "scale": 30.0}
    for wrong in [{"max_margin": -0.1}, {"max_margin": math.inf}, {"scale": 0}, {"max_margn": 0.5}]:
        with pytest.raises(ValidationError):
            LDAMOptions(**wrong)
    assert all(field.description for field in LDAMOptions.model_fields.values())


def test_margin_is_in_units_of_the_scaled_logits():
    logits = torch.zeros(3, 3)
    shifted = made(max_margin=0.6, scale=10).adjust_logits(logits=logits, targets=torch.tensor([0, 2, 2]))
    torch.testing.assert_close(shifted, torch.tensor([[-2.0, 0, 0], [0, 0, -6], [0, 0, -6]]))
    assert made(max_margin=0).adjust_logits(logits=logits, targets=torch.tensor([0, 1, 2])) is logits


def test_state_is_one_buffer_saved_and_restored():
    first, resumed = made(), made()
    assert list(first.state_dict()) == ["margins"] and not list(first.parameters())
    first.margins.add_(1.0)
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(resumed.margins, first.margins)


def test_a_class_without_images_is_an_error_with_names():
    with pytest.raises(DataError, match="method 'ldam': no training images of class 1"):
        LDAM().on_run_start(context=SimpleNamespace(class_counts=torch.tensor([3, 0]), num_classes=2))


def test_weight_and_bias_are_as_applied():
    torch.manual_seed(0)
    classifier = made(scale=7.0).build_classifier(feature_dim=6, num_classes=3)
    assert isinstance(classifier, NormalisedClassifier) and classifier.bias is None
    with torch.no_grad():
        classifier.raw_weight.mul_(torch.tensor([[0.1], [1.0], [20.0]]))
    x = torch.randn(5, 6)
    torch.testing.assert_close(F.linear(F.normalize(x), classifier.weight), classifier(x))
    torch.testing.assert_close(classifier.weight.norm(dim=1), torch.full((3,), 7.0))
    assert [name for name, _ in classifier.named_parameters()] == ["raw_weight"]
    copied = copy.deepcopy(classifier)
    assert torch.equal(copied(x), classifier(x)) and copied.raw_weight is not classifier.raw_weight


def test_rows_start_as_random_directions():
    torch.manual_seed(0)
    weight = NormalisedClassifier(64, 200).raw_weight.detach()
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(200))
    assert weight.mean().abs() < 0.01 and (weight @ weight.T - torch.eye(200)).abs().max() < 0.7


def test_under_autocast_the_classifier_stays_float32():
    torch.manual_seed(0)
    classifier, x = NormalisedClassifier(16, 3), torch.randn(8, 16).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = classifier(x)
    assert logits.dtype == torch.float32 and torch.equal(logits, cosine_logits(x.float(), classifier.raw_weight))
    logits.sum().backward()
    assert classifier.raw_weight.grad.dtype == torch.float32 and torch.isfinite(classifier.raw_weight.grad).all()


def test_a_step_never_waits_for_the_device(no_sync):
    method, targets = made(), torch.tensor([0, 1, 2, 2])
    classifier, x = NormalisedClassifier(6, 3), torch.randn(4, 6)
    with no_sync():
        method.adjust_logits(logits=classifier(x), targets=targets)


# -- in a run ----------------------------------------------------------------------------------------------------------

COMMON = {
    "data": {"use": "synthetic", "options": {"class_counts": [24, 16, 8, 4], "image_size": 8, "test_per_class": 4}},
    "backbone": {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
    "checkpoint_seconds": 0,
}


def stage(name="joint", *methods, **more):
    return {"name": name, "methods": methods, "optimizer": {"lr": 0.05}, **more}


def recipe(tmp_path, name, stages, methods=("ldam",), **parts):
    table = methods if isinstance(methods, dict) else {key: {} for key in methods}
    return write_short_recipe(tmp_path / f"{name}.yaml", methods=table, stages=stages, **{**COMMON, **parts})


def run(file, out, resume=False):
    done = ltcore.run(file, out=out / "runs", resume=resume)
    return done.result, done.path


def tensors(path, number, name):
    return load(path / "checkpoints" / f"stage-{number}-{name}.safetensors")[0]


def classifier_of(path, number, name):
    found = tensors(path, number, name)
    return {key.partition("classifier.")[2]: value for key, value in found.items() if key.startswith("model/classif")}


def test_a_run_evaluates_scaled_cosines_without_a_margin(tmp_path, monkeypatch):
    seen = []
    adjust = LDAM.adjust_logits

    def record(self, logits, targets):
        seen.append((logits.detach(), adjust(self, logits, targets).detach(), targets))
        return adjust(self, logits, targets)

    record.ltcore_impl = adjust.ltcore_impl
    monkeypatch.setattr(LDAM, "adjust_logits", record)
    result, path = run(recipe(tmp_path, "r", [stage("joint", "ldam")]), tmp_path)
    margins = 30 * ldam_margins(torch.tensor(result["class_counts"]))
    for logits, adjusted, targets in seen:
        torch.testing.assert_close((logits - adjusted).sum(1), margins[targets], atol=1e-4, rtol=0)
    with np.load(path / "predictions.npz") as predictions:
        assert np.abs(predictions["logits"]).max() <= 30.001 and np.abs(predictions["logits"]).max() > 5
    norms = result["stages"][0]["diagnostics"]["classifier_norm"]
    np.testing.assert_allclose(norms, [30.0] * 4, rtol=1e-5)


def test_zero_margin_is_the_normalised_classifier_alone_bit_for_bit(tmp_path, monkeypatch):
    methods = {"ldam": {"options": {"max_margin": 0}}}
    _, off = run(recipe(tmp_path, "off", [stage("joint", "ldam")], methods), tmp_path)
    _, on = run(recipe(tmp_path, "on", [stage("joint", "ldam")]), tmp_path)
    # Without the hook: only the classifier is LDAM's.
    monkeypatch.delattr(LDAM, "adjust_logits")
    _, bare = run(recipe(tmp_path, "bare", [stage("joint", "ldam")]), tmp_path)
    with (
        np.load(off / "predictions.npz") as a,
        np.load(bare / "predictions.npz") as b,
        np.load(on / "predictions.npz") as c,
    ):
        assert np.array_equal(a["logits"], b["logits"]) and not np.array_equal(a["logits"], c["logits"])


def test_a_classifier_of_its_own_is_built_where_the_stage_before_had_another(tmp_path):
    frozen = {"trainable": ["classifier"]}
    stages = [stage("plain"), stage("margin", "ldam"), stage("kept", **frozen), stage("again", "ldam", **frozen)]
    stages += [stage("crt", classifier="rebuild", **frozen), stage("last", "ldam", **frozen)]
    _, path = run(recipe(tmp_path, "r", stages), tmp_path)
    shapes = [sorted(classifier_of(path, index, item["name"])) for index, item in enumerate(stages)]
    linear, normalised = ["bias", "weight"], ["raw_weight"]
    assert shapes == [linear, normalised, normalised, normalised, linear, normalised]


def test_kept_stages_go_on_with_the_same_directions(tmp_path):
    still = {"trainable": ["backbone"]}
    _, path = run(recipe(tmp_path, "r", [stage("first", "ldam"), stage("second", "ldam", **still)]), tmp_path)
    first, second = classifier_of(path, 0, "first"), classifier_of(path, 1, "second")
    assert torch.equal(first["raw_weight"], second["raw_weight"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_mixes_with_loss_weights_mixup_and_calibration(tmp_path, precision):
    names = ["ldam", "focal", "class_balanced", "mixup"]
    file = recipe(
        tmp_path,
        "r",
        [stage("joint", *names, precision=precision)],
        [*names, "tau_norm"],
        calibrate=["tau_norm"],
    )
    result, path = run(file, tmp_path)
    losses = [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(loss) for loss in losses)
    # All rows have the norm 30, so tau-normalisation has nothing to put right.
    assert result["after_calibration"]["top1"] == result["before_calibration"]["top1"]


def test_a_killed_run_goes_on_exactly(tmp_path, copy_at_checkpoint):
    file = recipe(tmp_path, "r", [stage("plain"), stage("margin", "ldam")])
    copy_at_checkpoint(2, tmp_path / "killed" / "runs" / "r", "margin")  # its classifier has another shape
    _, whole = run(file, tmp_path)
    copy_at_checkpoint()
    _, resumed = run(file, tmp_path / "killed", resume=True)
    assert resumed != whole and resumed.name == whole.name
    with np.load(whole / "predictions.npz") as a, np.load(resumed / "predictions.npz") as b:
        assert np.array_equal(a["logits"], b["logits"])


def test_it_learns(tmp_path):
    stages = [stage("joint", "ldam", epochs=15)]
    _, path = run(recipe(tmp_path, "r", stages), tmp_path)
    losses = [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0]


def test_linear_layers_have_what_it_offers():
    # What every method may read of a classifier, on both kinds.
    for classifier in [nn.Linear(4, 3), NormalisedClassifier(4, 3)]:
        assert classifier.weight.shape == (3, 4) and (classifier.bias is None or classifier.bias.shape == (3,))
