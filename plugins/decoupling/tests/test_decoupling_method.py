import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ltcore_decoupling import LWS, NCM, CosineClassifier, LWSOptions, NCMOptions, ScaledClassifier, freeze_parameters
from pydantic import ValidationError
from torch import nn

import ltcore
from ltcore import CalibratedClassifier, DataError, RecipeError
from ltcore.files.checkpoint import load
from ltcore.testing import write_short_recipe
from ltcore.training import step


class Normalised(nn.Module):
    """Like LDAM's: unit weights as a property, no bias, a parameter in a submodule."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3, bias=False)
        self.register_buffer("size", torch.tensor(30.0))
        self.bias = None

    @property
    def weight(self):
        return self.size * F.normalize(self.inner.weight)

    def forward(self, x):
        return F.normalize(x) @ self.weight.T


PREVIOUS = {
    "linear": lambda: nn.Linear(4, 3),
    "no_bias": lambda: nn.Linear(4, 3, bias=False),
    "normalised": Normalised,
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    "calibrated": lambda: CalibratedClassifier(nn.Linear(4, 3), torch.tensor([1.0, 2.0, 3.0]), 0.5),
    "scaled": lambda: ScaledClassifier(nn.Linear(4, 3)),
}


@pytest.fixture(params=PREVIOUS)
def previous(request):
    torch.manual_seed(0)
    return PREVIOUS[request.param]()


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


# -- lws ---------------------------------------------------------------------------------------------------------------


def test_parameters_become_buffers(previous):
    before = copy.deepcopy(previous.state_dict())
    frozen = freeze_parameters(previous)
    assert not list(frozen.parameters()) and list(previous.parameters())
    assert set(frozen.state_dict()) == set(before)
    assert torch.equal(frozen(X), previous(X)) and not frozen(X).requires_grad
    with torch.no_grad():
        for tensor in frozen.buffers():
            tensor.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in previous.state_dict().items())


def test_lws_begins_as_the_classifier_that_it_wraps(previous):
    scaled = LWS().build_classifier(previous=previous)
    assert torch.equal(scaled(X), previous(X))
    assert torch.equal(scaled.weight, previous.weight)
    assert (scaled.bias is None) == (previous.bias is None)
    assert [name for name, _ in scaled.named_parameters()] == ["scale"]
    assert scaled.scale.tolist() == [1, 1, 1]


@pytest.mark.parametrize("weights", ["frozen", "train"])
@pytest.mark.parametrize("bias", ["scale", "keep"])
def test_lws_scales_weights_and_bias_as_applied(previous, bias, weights):
    scaled = LWS(LWSOptions(bias=bias, weights=weights)).build_classifier(previous=previous)
    scale = torch.tensor([0.5, 1.0, 3.0])
    with torch.no_grad():
        scaled.scale.copy_(scale)
    torch.testing.assert_close(scaled.weight, scale[:, None] * previous.weight)
    if previous.bias is None:
        assert scaled.bias is None
    else:
        assert torch.equal(scaled.bias, scale * previous.bias if bias == "scale" else previous.bias)
    x = F.normalize(X) if isinstance(previous, Normalised) else X
    torch.testing.assert_close(scaled(X), F.linear(x, scaled.weight, scaled.bias))
    scaled(X).sum().backward()
    assert scaled.scale.grad is not None and all(p.grad is None for p in previous.parameters())


def test_lws_is_rebuilt_and_restored(previous):
    first = LWS().build_classifier(previous=previous)
    with torch.no_grad():
        first.scale.copy_(torch.tensor([0.5, 1.0, 3.0]))
    with torch.no_grad():
        for parameter in previous.parameters():
            parameter.zero_()
    again = LWS().build_classifier(previous=previous)
    again.load_state_dict(first.state_dict())
    assert torch.equal(again(X), first(X))
    assert torch.equal(copy.deepcopy(first)(X), first(X))


@pytest.mark.parametrize("bias", ["scale", "keep"])
def test_weights_that_train_begin_as_the_classifier_and_learn_all_its_parameters(previous, bias):
    scaled = LWS(LWSOptions(weights="train", bias=bias)).build_classifier(previous=previous)
    assert torch.equal(scaled(X), previous(X))
    names = [name for name, _ in previous.named_parameters()]
    assert [name for name, _ in scaled.named_parameters()] == ["scale", *(f"inner.{name}" for name in names)]
    F.cross_entropy(scaled(X), torch.tensor([0, 1, 2, 2, 1, 0])).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in scaled.parameters())
    assert all(parameter.grad is None for parameter in previous.parameters())


@pytest.mark.parametrize("bias", ["scale", "keep"])
def test_gradients_of_weights_that_train_written_out(bias):
    """In float64, one number after the other."""
    previous = nn.Linear(4, 3).double()
    scaled = ScaledClassifier(previous, True, bias == "scale")
    scale, x = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64), X.double()
    with torch.no_grad():
        scaled.scale.copy_(scale)
    scaled(x).pow(2).sum().backward()
    of_weight, of_bias, of_scale = torch.zeros(3, 4), torch.zeros(3), torch.zeros(3)
    for n in range(6):
        for c in range(3):
            product = sum((previous.weight[c, d] * x[n, d]).item() for d in range(4))
            share = scale[c].item() if bias == "scale" else 1.0
            logit = scale[c].item() * product + share * previous.bias[c].item()
            of_bias[c] += 2 * logit * share
            of_scale[c] += 2 * logit * (product + (previous.bias[c].item() if bias == "scale" else 0.0))
            for d in range(4):
                of_weight[c, d] += 2 * logit * scale[c].item() * x[n, d].item()
    torch.testing.assert_close(scaled.inner.weight.grad.float(), of_weight)
    torch.testing.assert_close(scaled.inner.bias.grad.float(), of_bias)
    torch.testing.assert_close(scaled.scale.grad.float(), of_scale)


def test_lws_options_and_errors():
    assert LWS().options.model_dump() == {"weights": "frozen", "bias": "keep"} and LWS().requires == {"earlier_stage"}
    for wrong in [{"weights": "slow"}, {"bias": "drop"}, {"weight_lr": 0.2}]:
        with pytest.raises(ValidationError):
            LWSOptions(**wrong)
    assert all(field.description for field in LWSOptions.model_fields.values())
    with pytest.raises(RecipeError, match="'lws' scales a trained classifier"):
        LWS().build_classifier(previous=None)


# -- ncm ---------------------------------------------------------------------------------------------------------------


def ncm_context(features, targets, num_classes):
    return SimpleNamespace(training_features=lambda: features, training_targets=targets, num_classes=num_classes)


def test_ncm_makes_a_classifier_of_the_means():
    features, targets = torch.randn(30, 4, generator=torch.Generator().manual_seed(2)), torch.arange(30) % 3
    method = NCM(NCMOptions(scale=8))
    classifier = method.post_calibrate(context=ncm_context(features, targets, 3))
    unit = F.normalize(features)
    means = F.normalize(torch.stack([unit[targets == c].mean(0) for c in range(3)]))
    torch.testing.assert_close(classifier.weight, 8 * means)
    assert classifier.bias is None and not list(classifier.parameters())
    torch.testing.assert_close(classifier(X), 8 * F.cosine_similarity(X[:, None], means[None], dim=2))
    default = NCM().post_calibrate(context=ncm_context(features, targets, 3))
    torch.testing.assert_close(default(X) * 8, classifier(X))
    # What comes after it in `calibrate` can wrap it.
    torch.testing.assert_close(CalibratedClassifier(classifier, 2.0)(X), 2 * classifier(X))
    assert classifier(X.bfloat16()).dtype == torch.float32


def test_ncm_options_and_errors():
    assert NCM().options.scale == 1.0
    for wrong in [{"scale": 0.0}, {"scale": -1.0}, {"Scale": 1.0}]:
        with pytest.raises(ValidationError):
            NCMOptions(**wrong)
    assert all(field.description for field in NCMOptions.model_fields.values())
    with pytest.raises(DataError, match="method 'ncm': no training images of class 1"):
        NCM().post_calibrate(context=ncm_context(torch.ones(2, 4), torch.tensor([0, 2]), 3))


# -- in a run ----------------------------------------------------------------------------------------------------------

STAGE = {"epochs": 2, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}
SECOND = {**STAGE, "name": "classifier", "trainable": ["classifier"], "sampler": "class_balanced", "cache": "eval"}


def recipe(tmp_path, name, second, methods=(), **parts):
    whole = {
        "data": {
            "use": "synthetic",
            "options": {"class_counts": [24, 16, 8, 4], "image_size": 8, "test_per_class": 4},
        },
        "backbone": {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        "methods": methods if isinstance(methods, dict) else {use: {} for use in methods},
        "stages": [{**STAGE, "name": "representation"}, *second],
        "checkpoint_seconds": 0,
    }
    whole |= parts
    stages = [{"methods": [], **stage} for stage in whole.pop("stages")]
    return write_short_recipe(tmp_path / f"{name}.yaml", stages=stages, **whole)


def run(file, out, resume=False):
    done = ltcore.run(file, out=out / "runs", resume=resume)
    return done.result, done.path


def tensors_of(path, index, name):
    return load(path / "checkpoints" / f"stage-{index}-{name}.safetensors")[0]


def test_crt_is_a_recipe(tmp_path):
    crt = {**SECOND, "classifier": "rebuild"}
    _, path = run(recipe(tmp_path, "crt", [crt]), tmp_path)
    first, second = tensors_of(path, 0, "representation"), tensors_of(path, 1, "classifier")
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) == name.startswith("model/backbone"), name
    # Where it began, seen by hardly training it: neither at the first stage's classifier nor where it ends.
    fresh = {**crt, "iterations": 1, "optimizer": {"lr": 1e-30}}
    del fresh["epochs"]
    built = tensors_of(run(recipe(tmp_path, "fresh", [fresh]), tmp_path)[1], 1, "classifier")
    assert not torch.equal(built["model/classifier.weight"], first["model/classifier.weight"])
    assert not torch.equal(built["model/classifier.weight"], second["model/classifier.weight"])


def test_crt_draws_every_class_alike(tmp_path, look_on):
    drawn = []

    def recording(run, loop):
        if loop.stage.name == "classifier":
            drawn.append(loop.state.training_targets[torch.cat(loop.batches)])

    look_on(epoch_started=recording)
    run(recipe(tmp_path, "crt", [{**SECOND, "classifier": "rebuild", "epochs": 20}]), tmp_path)
    shares = torch.bincount(torch.cat(drawn), minlength=4) / len(torch.cat(drawn))
    assert (shares - 0.25).abs().max() < 0.06  # 24, 16, 8 and 4 images


def test_lws_trains_the_scales_only_and_starts_where_the_stage_before_ended(tmp_path):
    lws = {**SECOND, "methods": ["lws"]}
    still = {**lws, "iterations": 1, "optimizer": {"lr": 1e-30}}
    del still["epochs"]
    result, _ = run(recipe(tmp_path, "still", [still], ["lws"]), tmp_path)
    assert result["stages"][0]["test"] == result["stages"][1]["test"]

    result, path = run(recipe(tmp_path, "lws", [lws], ["lws"]), tmp_path)
    first, second = tensors_of(path, 0, "representation"), tensors_of(path, 1, "classifier")
    for name in ("weight", "bias"):
        assert torch.equal(second.pop(f"model/classifier.inner.{name}"), first.pop(f"model/classifier.{name}"))
    scale = second.pop("model/classifier.scale")
    assert scale.shape == (4,) and (scale != 1).all()
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items()) and set(first) == set(second)


def softmax(x):
    odds = np.exp(x - x.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def test_weights_train_in_a_group_of_their_own(tmp_path, monkeypatch):
    """MiSLAS's generalised classifier: a rate and a weight decay for the weights, against steps in float64 by hand."""
    seen, real = [], step.classification_loss

    def watched(hooks, logits, record, weights, factors=None):
        seen.append((record.features.detach().numpy().astype(np.float64), record.targets.numpy()))
        return real(hooks, logits, record, weights, factors)

    stage = {
        **SECOND,
        "methods": ["lws"],
        "schedule": {"name": "cosine"},
        "optimizer": {
            **STAGE["optimizer"],
            "weight_decay": 0.1,
            "groups": {"classifier.inner": {"lr": 0.01, "weight_decay": 0.5}},
        },
    }
    file = recipe(tmp_path, "r", [stage], methods={"lws": {"options": {"weights": "train", "bias": "scale"}}})
    monkeypatch.setattr(step, "classification_loss", watched)
    _, path = run(file, tmp_path)
    first, second = tensors_of(path, 0, "representation"), tensors_of(path, 1, "classifier")
    weight, bias = (first[f"model/classifier.{name}"].numpy().astype(np.float64) for name in ("weight", "bias"))
    values = {"inner.weight": weight, "inner.bias": bias, "scale": np.ones(4)}
    velocity = {name: np.zeros_like(value) for name, value in values.items()}
    steps = seen[8:]  # 52 images in batches of 16 are four steps an epoch, and there are two epochs
    assert len(steps) == 8
    for number, (x, targets) in enumerate(steps):
        logits = x @ values["inner.weight"].T + values["inner.bias"]
        error = (softmax(values["scale"] * logits) - np.eye(4)[targets]) / len(x)
        inner = error * values["scale"]
        gradients = {"inner.weight": inner.T @ x, "inner.bias": inner.sum(0), "scale": (error * logits).sum(0)}
        factor = (1 + np.cos(np.pi * number / 8)) / 2
        for name, gradient in gradients.items():
            rate, decay = (0.05, 0.1) if name == "scale" else (0.01, 0.5)
            velocity[name] = 0.9 * velocity[name] + gradient + decay * values[name]
            values[name] = values[name] - factor * rate * velocity[name]
    for name, value in values.items():
        found = second[f"model/classifier.{name}"].numpy()
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)
    assert np.abs(values["inner.weight"] - weight).max() > 0.01  # the steps are large against the tolerance


def test_lws_after_lws_and_under_a_calibration(tmp_path):
    stages = [{**SECOND, "methods": ["lws"]}, {**SECOND, "name": "more", "methods": ["lws"], "classifier": "rebuild"}]
    result, path = run(recipe(tmp_path, "twice", stages, ["lws", "tau_norm"], calibrate=["tau_norm"]), tmp_path)
    assert "model/classifier.inner.inner.weight" in tensors_of(path, 2, "more")
    assert 0 <= result["after_calibration"]["top1"] <= 1


def test_a_killed_run_with_lws_goes_on(tmp_path, copy_at_checkpoint):
    file = recipe(tmp_path, "r", [{**SECOND, "methods": ["lws"]}], ["lws", "ncm"], calibrate=["ncm"])
    copy_at_checkpoint(5, tmp_path / "killed" / "runs" / "r", "classifier")  # in its second epoch
    _, whole = run(file, tmp_path)
    copy_at_checkpoint()
    _, resumed = run(file, tmp_path / "killed", resume=True)
    assert resumed != whole and resumed.name == whole.name
    with np.load(whole / "predictions.npz") as a, np.load(resumed / "predictions.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in ("logits", "calibrated_logits"))


def test_ncm_calibrates_a_run(tmp_path):
    result, path = run(recipe(tmp_path, "ncm", [], ["ncm"], calibrate=["ncm"]), tmp_path)
    assert result["calibration"] == ["ncm"] and 0 <= result["after_calibration"]["ece"] <= 1
    with np.load(path / "predictions.npz") as found:
        assert np.abs(found["calibrated_logits"]).max() <= 1 + 1e-6
        assert not np.array_equal(found["logits"], found["calibrated_logits"])


def test_lws_in_the_first_stage_is_refused(tmp_path):
    first = {**STAGE, "name": "only", "methods": ["lws"]}
    with pytest.raises(RecipeError, match=r"'lws' .* needs earlier_stage"):
        run(recipe(tmp_path, "first", [], ["lws"], stages=[first]), tmp_path)


def test_the_cosine_classifier_is_saved():
    first = CosineClassifier(torch.eye(3, 4))
    again = CosineClassifier(torch.zeros(3, 4))
    again.load_state_dict(first.state_dict())
    assert torch.equal(again(X), first(X))
