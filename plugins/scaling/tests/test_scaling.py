import json

import numpy as np
import pytest
import torch
from ltcore_scaling import (
    Temperature,
    TemperatureOptions,
    VectorScaling,
    VectorScalingOptions,
    class_shares,
    fit_temperature,
    fit_vector,
    log_loss,
)
from pydantic import ValidationError
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax
from torch import nn

import ltcore
from ltcore import DataError, RecipeError


def case(rows=400, classes=5, seed=0, size=2.0):
    """Logits too sure of themselves, the more so for the first classes, and long-tailed targets."""
    random = np.random.default_rng(seed)
    shares = 0.6 ** np.arange(classes)
    targets = np.concatenate([np.arange(classes), random.choice(classes, rows - classes, p=shares / shares.sum())])
    logits = random.normal(size=(rows, classes))
    logits[np.arange(rows), targets] += 1
    logits *= size * np.linspace(1.5, 0.5, classes)
    return torch.from_numpy(logits), torch.from_numpy(targets)


def test_defaults_and_bounds():
    assert Temperature().options.model_dump() == {"classes": "as_they_are"}
    assert VectorScaling().options.model_dump() == {"classes": "as_they_are", "l2": 1e-3}
    for options, wrong in [
        (TemperatureOptions, {"classes": "all"}),
        (TemperatureOptions, {"l2": 1}),
        (VectorScalingOptions, {"l2": -1}),
    ]:
        with pytest.raises(ValidationError):
            options(**wrong)
    assert all(field.description for field in VectorScalingOptions.model_fields.values())


# -- the functions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [0.1, 2.0, 30.0])
def test_the_temperature_is_scipys(size, weighted):
    logits, targets = case(size=size)
    weights = class_shares(targets, 5) if weighted else None

    def loss(log_temperature):
        values = -log_softmax(logits.numpy() / np.exp(log_temperature), axis=1)[np.arange(400), targets]
        return values.mean() if weights is None else (weights.numpy() * values).sum()

    found = minimize_scalar(loss, bounds=(-7, 7), method="bounded", options={"xatol": 1e-9})
    temperature = fit_temperature(logits, targets, weights)
    assert temperature == pytest.approx(np.exp(found.x), rel=1e-5)
    assert log_loss(logits / temperature, targets, weights) == pytest.approx(found.fun, abs=1e-12)


def test_logits_of_the_true_probabilities_times_three_have_temperature_three():
    """Targets as often as the probabilities say, exactly: rows are repeated in whole numbers."""
    shares = torch.tensor([[4, 3, 1], [1, 1, 6], [2, 5, 1]])
    targets = torch.cat([torch.repeat_interleave(torch.arange(3), row) for row in shares])
    logits = torch.repeat_interleave((shares.double() / 8).log(), 8, dim=0)
    assert fit_temperature(3 * logits, targets) == pytest.approx(3, rel=1e-9)


def test_the_ends_of_what_is_looked_at():
    right = torch.eye(3)
    assert fit_temperature(right, torch.arange(3)) == pytest.approx(0.001)
    assert fit_temperature(right, torch.tensor([1, 2, 0])) == pytest.approx(1000)
    with pytest.raises(ValueError, match="no row"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("l2", [0.0, 1e-2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_vectors_are_scipys(l2, weighted):
    logits, targets = case()
    weights = class_shares(targets, 5) if weighted else torch.full((400,), 1 / 400, dtype=torch.float64)

    def loss(x):
        values = -log_softmax(x[:5] * logits.numpy() + x[5:], axis=1)[np.arange(400), targets]
        return (weights.numpy() * values).sum() + l2 / 2 * ((x[:5] - 1) ** 2 + x[5:] ** 2).mean()

    wanted = minimize(loss, np.repeat([1.0, 0.0], 5), method="BFGS", options={"gtol": 1e-9})
    scale, shift = fit_vector(logits, targets, weights if weighted else None, l2)
    np.testing.assert_allclose(scale, wanted.x[:5], atol=2e-5)
    np.testing.assert_allclose(shift, wanted.x[5:] - wanted.x[5:].mean(), atol=2e-5)
    plain = log_loss(logits, targets, weights)
    assert log_loss(scale * logits + shift, targets, weights) < log_loss(logits / 2, targets, weights) < plain


def test_with_no_freedom_left_the_logits_stay():
    logits, targets = case()
    scale, shift = fit_vector(logits, targets, l2=1e9)
    torch.testing.assert_close(scale, torch.ones(5, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(shift, torch.zeros(5, dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_class_without_a_row_needs_a_preference():
    logits, targets = case()
    targets[targets == 4] = 0
    with pytest.raises(ValueError, match="would never be predicted"):
        fit_vector(logits, targets)
    with pytest.raises(ValueError, match="at least 0"):
        fit_vector(logits, targets, l2=-1.0)
    scale, shift = fit_vector(logits, targets, l2=1e-3)
    assert scale.isfinite().all() and shift[4] == shift.min()


def test_weights_are_repeated_rows():
    logits, targets = case(rows=60)
    shares = class_shares(targets, 5)
    assert float(shares.sum()) == pytest.approx(1)
    sums = torch.zeros(5, dtype=torch.float64).index_add_(0, targets, shares)
    torch.testing.assert_close(sums, torch.full((5,), 0.2, dtype=torch.float64))
    repeated = torch.arange(60).repeat_interleave(torch.arange(60) % 3 + 1)
    weights = (torch.arange(60) % 3 + 1).double()
    weights /= weights.sum()
    assert fit_temperature(logits, targets, weights) == pytest.approx(
        fit_temperature(logits[repeated], targets[repeated])
    )
    assert log_loss(logits, targets, weights) == pytest.approx(log_loss(logits[repeated], targets[repeated]))


# -- the methods -------------------------------------------------------------------------------------------------------


class Held:
    """What the methods ask of a context."""

    def __init__(self, features, targets, classes):
        self.name, self.num_classes = "vector_scaling", classes
        self.validation_targets, self.features = targets, features

    def validation_features(self):
        return self.features


@pytest.mark.parametrize("kind", [Temperature, VectorScaling])
def test_the_classifier_gives_what_the_functions_say(kind):
    torch.manual_seed(0)
    classifier = nn.Linear(6, 5)
    features, targets = torch.randn(300, 6), torch.arange(300) % 5
    with torch.no_grad():
        logits = classifier(features)
        found = kind().post_calibrate(classifier=classifier, context=Held(features, targets, 5))
        if kind is Temperature:
            wanted = logits / fit_temperature(logits, targets)
            assert torch.equal(found(features).argmax(1), logits.argmax(1))
        else:
            scale, shift = fit_vector(logits, targets, l2=1e-3)
            wanted = (scale * logits + shift).float()
        torch.testing.assert_close(found(features), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(features @ found.weight.T + found.bias, wanted, rtol=1e-4, atol=1e-4)


def test_balanced_classes_are_another_temperature():
    torch.manual_seed(0)
    classifier, features = nn.Linear(6, 3), torch.randn(200, 6)
    with torch.no_grad():
        targets = classifier(features).argmax(1)
        targets[:60] = 2
        options = TemperatureOptions(classes="balanced")
        found = Temperature(options).post_calibrate(classifier=classifier, context=Held(features, targets, 3))
        wanted = fit_temperature(classifier(features), targets, class_shares(targets, 3))
    assert float(found.scale[0]) == pytest.approx(1 / wanted, rel=1e-6)
    assert wanted != pytest.approx(fit_temperature(classifier(features).detach(), targets), rel=1e-3)


def test_a_class_without_a_held_out_image_is_one_message():
    context = Held(torch.randn(9, 4), torch.arange(9) % 2, 3)
    with pytest.raises(DataError, match="method 'vector_scaling': 1 classes have no held-out image, first class 2"):
        VectorScaling(VectorScalingOptions(l2=0)).post_calibrate(classifier=nn.Linear(4, 3), context=context)


# -- in a run ----------------------------------------------------------------------------------------------------------


def recipe(tmp_path, *calibrate, holdout=4, **options):
    whole = {
        "data": {
            "use": "synthetic",
            "options": {"class_counts": [60, 40, 30, 20], "image_size": 8, "test_per_class": 20, "noise": 120},
            "holdout": holdout,
        },
        "backbone": {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        "methods": {name: {"options": options} for name in calibrate},
        "stages": [{"name": "s", "epochs": 3, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}}],
        "calibrate": list(calibrate),
    }
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(whole))
    return path


@pytest.mark.parametrize("name", ["temperature", "vector_scaling"])
def test_a_run_is_calibrated_opened_and_the_same_again(tmp_path, name):
    first = ltcore.run(recipe(tmp_path, name), out=tmp_path / "a")
    again = ltcore.run(recipe(tmp_path, name), out=tmp_path / "b")
    assert np.array_equal(first.calibrated_logits, again.calibrated_logits)
    assert not np.array_equal(first.logits, first.calibrated_logits)
    opened = ltcore.load(first.path)
    with torch.no_grad():
        pooled = torch.from_numpy(opened.features("test"))
        logits = opened.model.classifier(pooled)
    np.testing.assert_allclose(logits.numpy(), first.calibrated_logits, rtol=1e-4, atol=1e-4)
    same = (first.logits.argmax(1) == first.calibrated_logits.argmax(1)).all()
    assert same or name == "vector_scaling"


def test_without_held_out_images_it_is_refused_before_data_is_read(tmp_path):
    with pytest.raises(RecipeError, match=r"temperature.*validation"):
        ltcore.run(recipe(tmp_path, "temperature", holdout=0), out=tmp_path / "a")


@pytest.mark.parametrize("name", ["temperature", "vector_scaling"])
def test_a_network_that_is_too_sure_of_itself_is_so_no_more(tmp_path, name):
    """A long tail learnt by heart, tested on as many images of each class; as many of each are held out."""
    data = {"class_counts": [90, 60, 50, 40], "image_size": 8, "test_per_class": 100, "noise": 0.8}
    whole = {
        "data": {"use": "synthetic", "options": data, "holdout": 25},
        "backbone": {"use": "cifar_resnet", "options": {"depth": 8, "width": 8}},
        "methods": {name: {}},
        "stages": [
            {"name": "s", "epochs": 20, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}
        ],
        "calibrate": [name],
        "diagnostics": "off",
    }
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(whole))
    result = ltcore.run(path, out=tmp_path / "runs").result
    before, after = result["before_calibration"], result["after_calibration"]
    assert before["ece"] > 0.2 and after["ece"] < before["ece"] / 2
    if name == "temperature":
        assert after["top1"] == before["top1"]
    else:
        assert after["balanced_accuracy"] > before["balanced_accuracy"]  # the tail has its shifts
