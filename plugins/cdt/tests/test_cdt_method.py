import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ltcore_cdt import CDT, CDTOptions, CountNorm, CountNormOptions, temperatures
from pydantic import ValidationError
from torch import nn

import ltcore
from ltcore import CalibratedClassifier, DataError
from ltcore.files.checkpoint import load
from ltcore.testing import write_short_recipe

COUNTS = torch.tensor([900, 90, 9, 1])


def context(epoch=0, counts=COUNTS):
    return SimpleNamespace(epoch=epoch, class_counts=counts, num_classes=len(counts))


def started(**options) -> CDT:
    method = CDT(CDTOptions(**options))
    method.on_run_start(context=context(-1))
    return method


def calibrate(classifier: nn.Module, **options) -> nn.Module:
    return CountNorm(CountNormOptions(**options)).post_calibrate(classifier=classifier, context=context())


def trained(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 4, bias=bias)


# -- cdt ---------------------------------------------------------------------------------------------------------------


def test_cdt_defaults_and_bounds():
    assert CDT().options.model_dump() == {"gamma": 0.2, "start_epoch": 0}
    for wrong in [{"gamma": -0.1}, {"gamma": math.inf}, {"start_epoch": -1}, {"gama": 0.2}]:
        with pytest.raises(ValidationError):
            CDTOptions(**wrong)
    assert all(field.description for field in CDTOptions.model_fields.values())


@pytest.mark.parametrize("n", [1, 7])
def test_training_logits_by_epoch(n):
    logits = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    method = started(gamma=0.3, start_epoch=2)
    for epoch in (0, 1):
        assert method.adjust_logits(logits=logits, context=context(epoch)) is logits
    for epoch in (2, 3, 50):
        adjusted = method.adjust_logits(logits=logits, context=context(epoch))
        torch.testing.assert_close(adjusted, logits / torch.tensor([1.0, 10, 100, 900]) ** 0.3)
    assert started(gamma=0).adjust_logits(logits=logits, context=context(5)) is logits


def test_state_is_one_buffer_saved_and_restored():
    first = started(gamma=0.3)
    assert list(first.state_dict()) == ["temperature"] and not list(first.parameters())
    resumed = started(gamma=0.3)
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(resumed.temperature, temperatures(COUNTS, 0.3))


def test_it_says_when_it_acts():
    assert CDT(CDTOptions(start_epoch=5)).acts_from == 5  # which core looks at
    assert CDT().acts_from == 0


def test_a_class_without_images_is_an_error_with_names():
    empty = context(counts=torch.tensor([3, 0]))
    with pytest.raises(DataError, match="method 'cdt': no training images of class 1"):
        CDT().on_run_start(context=empty)
    with pytest.raises(DataError, match="method 'count_norm': no training images of class 1"):
        CountNorm().post_calibrate(classifier=nn.Linear(3, 2), context=empty)


# -- count_norm --------------------------------------------------------------------------------------------------------


def test_count_norm_defaults_and_bounds():
    assert CountNorm().options.model_dump() == {"tau": 0.5, "bias": "keep"}
    for wrong in [{"tau": -0.1}, {"tau": 1.1}, {"bias": "halve"}, {"tua": 1.0}]:
        with pytest.raises(ValidationError):
            CountNormOptions(**wrong)
    assert all(field.description for field in CountNormOptions.model_fields.values())


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("has_bias", "option"), [(True, "keep"), (True, "drop"), (False, "keep"), (False, "drop")])
def test_logits_are_those_of_the_formula(n, tau, has_bias, option):
    classifier, pooled = trained(has_bias), torch.randn(n, 6, generator=torch.Generator().manual_seed(1))
    expected = torch.empty(n, 4)
    for i in range(n):
        for c in range(4):
            expected[i, c] = pooled[i] @ classifier.weight[c].detach() / COUNTS[c].item() ** tau
            if has_bias and option == "keep":
                expected[i, c] += classifier.bias[c].detach()
    calibrated = calibrate(classifier, tau=tau, bias=option)
    torch.testing.assert_close(calibrated(pooled), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(F.linear(pooled, calibrated.weight, calibrated.bias), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("bias", "option"), [(True, "keep"), (False, "keep"), (False, "drop")])
def test_tau_zero_is_the_classifier_itself(bias, option):
    classifier = trained(bias)
    assert calibrate(classifier, tau=0, bias=option) is classifier


def test_a_rare_class_gains():
    # Of 100 images and of 1, and the frequent class just ahead; a tenth of its logit is behind.
    classifier, pooled = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.8]])
    with torch.no_grad():
        classifier.weight.copy_(torch.eye(2))
    normal = CountNorm().post_calibrate(classifier=classifier, context=context(counts=torch.tensor([100, 1])))
    assert classifier(pooled).argmax() == 0 and normal(pooled).argmax() == 1
    torch.testing.assert_close(normal(pooled), torch.tensor([[0.1, 0.8]]))


def test_two_halves_are_one_without_a_bias():
    classifier, pooled = trained(bias=False), torch.randn(3, 6)
    twice = calibrate(calibrate(classifier, tau=0.5), tau=0.5)
    torch.testing.assert_close(twice(pooled), calibrate(classifier, tau=1.0)(pooled))


def test_the_classifier_is_left_alone_and_the_result_is_plain_data():
    classifier = trained()
    before = copy.deepcopy(classifier.state_dict())
    calibrated = copy.deepcopy(calibrate(classifier))
    assert not calibrated.scale.requires_grad and not calibrated.shift.requires_grad
    assert all(torch.equal(value, classifier.state_dict()[key]) for key, value in before.items())


def test_it_reads_weight_and_bias_as_they_are_applied():
    inner = CalibratedClassifier(trained(), scale=torch.tensor([1.0, 2.0, 3.0, 4.0]), shift=torch.arange(4.0))
    pooled = torch.randn(3, 6)
    expected = F.linear(pooled, inner.weight / COUNTS[:, None].sqrt(), inner.bias)
    torch.testing.assert_close(calibrate(inner)(pooled), expected, rtol=1e-5, atol=1e-5)


def test_a_classifier_with_no_bias_attribute_works():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 2))

        def forward(self, pooled: torch.Tensor) -> torch.Tensor:
            return pooled @ self.weight.T

    expected = 2 / COUNTS[None].float()
    torch.testing.assert_close(calibrate(Bare(), tau=1)(torch.ones(1, 2)), expected)
    assert torch.isfinite(calibrate(Bare(), bias="drop")(torch.ones(1, 2))).all()


# -- in a run ----------------------------------------------------------------------------------------------------------


SYNTHETIC = {"use": "synthetic", "options": {"class_counts": [24, 16, 8, 4], "image_size": 8, "test_per_class": 4}}


def run(tmp_path, name, methods=None, acting=(), calibrate=(), data=SYNTHETIC):
    path = write_short_recipe(
        tmp_path / f"{name}.yaml",
        data=data,
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods=methods or {},
        stages=[{"epochs": 4, "methods": list(acting), "optimizer": {"lr": 0.05}}],
        calibrate=list(calibrate),
    )
    done = ltcore.run(path, out=tmp_path / "runs")
    losses = [json.loads(line)["loss"] for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    with np.load(done.path / "predictions.npz") as arrays:
        return losses, dict(arrays)


def test_the_schedule_begins_at_its_epoch_and_gamma_zero_is_the_baseline_bit_for_bit(tmp_path):
    plain, plain_predictions = run(tmp_path, "plain")
    late, _ = run(tmp_path, "late", {"cdt": {"options": {"gamma": 0.3, "start_epoch": 2}}}, ["cdt"])
    assert late[:2] == plain[:2] and late[2] != plain[2] and late[3] != plain[3]
    early, _ = run(tmp_path, "early", {"cdt": {"options": {"gamma": 0.3}}}, ["cdt"])
    assert early[0] != plain[0]
    off, off_predictions = run(tmp_path, "off", {"cdt": {"options": {"gamma": 0}}}, ["cdt"])
    assert off == plain and np.array_equal(off_predictions["logits"], plain_predictions["logits"])


@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_calibrated_test_logits_of_a_run(tmp_path, tau):
    dropped, kept = (
        run(
            tmp_path, bias, {"cdt": {}, "count_norm": {"options": {"tau": tau, "bias": bias}}}, ["cdt"], ["count_norm"]
        )[1]
        for bias in ("drop", "keep")
    )
    assert np.array_equal(dropped["logits"], kept["logits"])  # evaluation is on z, whatever calibrates it
    if tau == 0:
        assert np.array_equal(kept["calibrated_logits"], kept["logits"])
    # What is left of the logits without the bias b is x @ w.T / n**tau; with it, b more, the same in every row.
    bias = kept["calibrated_logits"].astype(np.float64) - dropped["calibrated_logits"]
    assert np.ptp(bias, axis=0).max() < 1e-5
    scale = np.array([24.0, 16, 8, 4]) ** -tau
    np.testing.assert_allclose(
        dropped["calibrated_logits"], (dropped["logits"] - bias.mean(0)) * scale, rtol=1e-4, atol=1e-5
    )


def test_step_imbalance_has_two_temperatures_and_trains(tmp_path):
    """The first half of the classes has all its images, the others have a tenth."""
    options = {"num_classes": 5, "max_count": 20, "image_size": 8, "test_per_class": 4}
    data = {"use": "synthetic", "options": options, "imbalance": {"kind": "step", "factor": 10}}
    tempered, predictions = run(tmp_path, "step", {"cdt": {"options": {"gamma": 0.3}}}, ["cdt"], data=data)
    (checkpoint,) = (tmp_path / "runs" / "step").glob("*/checkpoints/stage-0-joint.safetensors")
    temperature = load(checkpoint)[0]["model/methods.cdt.temperature"]
    torch.testing.assert_close(temperature, torch.tensor([1.0, 1, 10**0.3, 10**0.3, 10**0.3]))
    plain, others = run(tmp_path, "plain", data=data)
    assert tempered != plain and not np.array_equal(predictions["logits"], others["logits"])
    assert all(math.isfinite(loss) for loss in tempered) and tempered[-1] < tempered[0]


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_tau_norm_after_cdt_is_on_the_undivided_logits(tmp_path, tau):
    """The paper's CDT with tau-normalisation: trained on z / a, evaluated on ``w_c / ||w_c|| ** tau`` without any a."""
    methods = {"cdt": {"options": {"gamma": 0.3}}, "tau_norm": {"options": {"tau": tau, "bias": "keep"}}}
    losses, found = run(tmp_path, "both", methods, ["cdt"], ["tau_norm"])
    alone, logits = run(tmp_path, "alone", {"cdt": methods["cdt"]}, ["cdt"])
    assert losses == alone and np.array_equal(found["logits"], logits["logits"])
    (checkpoint,) = (tmp_path / "runs" / "both").glob("*/checkpoints/stage-0-joint.safetensors")
    model = load(checkpoint)[0]
    weight, bias = (model[f"model/classifier.{name}"].numpy().astype(np.float64) for name in ("weight", "bias"))
    expected = (found["logits"] - bias) / np.linalg.norm(weight, axis=1) ** tau + bias
    np.testing.assert_allclose(found["calibrated_logits"], expected, rtol=1e-4, atol=1e-5)
    assert tau == 0 or not np.allclose(found["calibrated_logits"], found["logits"], atol=1e-4)
