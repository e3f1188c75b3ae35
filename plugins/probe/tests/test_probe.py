"""The linear probe against scikit-learn, and as a method."""

import json

import numpy as np
import pytest
import torch
from ltcore_probe import BALANCES, balanced_log_loss, fit, fit_selected, held_apart, spread
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss

import ltcore

CLASSES = 10


@pytest.fixture(scope="module")
def tailed():
    """Digits with 120 images of the first class down to 6 of the last; the others to look at."""
    images, labels = load_digits(return_X_y=True)
    counts = [round(120 * (6 / 120) ** (c / 9)) for c in range(CLASSES)]
    rows = np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate(counts)])
    rest = np.setdiff1d(np.arange(len(labels)), rows)
    tensors = (torch.as_tensor(images, dtype=torch.float32), torch.as_tensor(labels))
    return *(each[rows] for each in tensors), *(each[rest] for each in tensors)


@pytest.mark.parametrize("l2", [0.1, 1e-3])
@pytest.mark.parametrize("balance", ["none", "class_balanced"])
def test_it_is_scikit_learns_logistic_regression_on_standardised_features(tailed, balance, l2):
    x, y, _, _ = tailed
    found = fit(x, y, CLASSES, balance, l2)
    rows, scale = x.double().numpy(), spread(x).numpy()
    rows = (rows - rows.mean(0)) / scale
    weight = None if balance == "none" else "balanced"
    reference = LogisticRegression(C=1 / (len(y) * l2), class_weight=weight, max_iter=5000, tol=1e-8)
    reference.fit(rows, y.numpy())
    ours = (x @ found.weight.T + found.bias).softmax(1).numpy()
    np.testing.assert_allclose(ours, reference.predict_proba(rows), atol=1e-3)

    def objective(probabilities, weights):
        values = -np.log(probabilities[np.arange(len(y)), y.numpy()])
        shares = np.ones(len(y)) if weight is None else 1 / np.bincount(y)[y]
        return np.average(values, weights=shares) + l2 / 2 * np.square(weights).sum()

    inner = found.weight.numpy() * scale
    expected = objective(reference.predict_proba(rows), reference.coef_)
    assert objective(ours, inner) == pytest.approx(expected, rel=1e-5)


def test_logit_adjustment_is_a_fit_with_the_log_shares_as_an_offset(tailed):
    """A slow descent in float64 on the loss as it is written down."""
    x, y, _, _ = tailed
    l2 = 0.01
    found = fit(x, y, CLASSES, "logit_adjusted", l2)
    rows = x.double()
    rows = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 0.01 * rows.var(0, unbiased=False).mean()).sqrt()
    weight = torch.zeros(CLASSES, 64, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(CLASSES, dtype=torch.float64, requires_grad=True)
    shares = (torch.bincount(y).double() / len(y)).log()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=2000, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        logits = rows @ weight.T + bias + shares
        loss = torch.nn.functional.cross_entropy(logits, y) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = (rows @ weight.T + bias).softmax(1).detach()
    torch.testing.assert_close((x @ found.weight.T + found.bias).softmax(1).double(), expected, atol=2e-3, rtol=0)


def test_balanced_classes_need_no_balance():
    torch.manual_seed(0)
    y = torch.arange(40) % 4
    x = torch.randn(40, 6) + torch.nn.functional.one_hot(y, 6)
    fits = [fit(x, y, 4, balance, 0.05) for balance in BALANCES]
    for found in fits[1:]:
        torch.testing.assert_close(
            (x @ found.weight.T + found.bias).softmax(1),
            (x @ fits[0].weight.T + fits[0].bias).softmax(1),
            atol=1e-3,
            rtol=0,
        )


@pytest.mark.parametrize("balance", ["class_balanced", "logit_adjusted"])
def test_rare_classes_are_told_apart_better(tailed, balance):
    x, y, other, labels = tailed
    plain, found = (fit(x, y, CLASSES, how, 0.1) for how in ("none", balance))
    scores = [balanced_accuracy_score(labels, (other @ one.weight.T + one.bias).argmax(1)) for one in (plain, found)]
    assert scores[1] > scores[0] + 0.02, scores


def test_the_selected_penalty_has_the_smallest_held_out_loss(tailed):
    x, y, other, labels = tailed
    chosen = fit_selected(x, y, CLASSES, "logit_adjusted", (other, labels))
    losses = dict(chosen.tried)
    assert chosen.l2 == min(losses, key=losses.get) and len(losses) > 3
    for penalty in losses:  # a warm start changes little
        cold = fit(x, y, CLASSES, "logit_adjusted", penalty)
        assert balanced_log_loss(other @ cold.weight.T + cold.bias, labels) == pytest.approx(losses[penalty], abs=5e-3)


def test_the_balanced_log_loss_is_scikit_learns_with_weights(tailed):
    y = tailed[1]
    logits = torch.randn(len(y), CLASSES, generator=torch.Generator().manual_seed(1))
    weights = 1 / torch.bincount(y)[y]
    expected = log_loss(y, logits.double().softmax(1).numpy(), sample_weight=weights.numpy(), labels=range(CLASSES))
    assert balanced_log_loss(logits, y) == pytest.approx(expected, rel=1e-6)


def test_every_fifth_row_of_a_class_is_held_apart():
    targets = torch.tensor([0] * 11 + [1] * 4 + [2] * 5)[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    apart = held_apart(targets)
    for label, wanted in ((0, 2), (1, 0), (2, 1)):
        rows = (targets == label).nonzero().flatten()
        assert apart[rows].nonzero().flatten().tolist() == [4, 9][:wanted]


def test_features_that_never_change_and_wrong_penalties():
    x = torch.cat([torch.randn(8, 2), torch.full((8, 1), 3.0)], 1)
    found = fit(x, torch.arange(8) % 2, 2)
    assert found.weight.isfinite().all() and found.bias.isfinite().all()
    for arguments in ({"l2": 0.0}, {"l2": -1.0}):
        with pytest.raises(ValueError, match="above 0"):
            fit(x, torch.arange(8) % 2, 2, **arguments)
    with pytest.raises(ValueError, match="no row"):
        fit(x[:0], torch.zeros(0, dtype=torch.int64), 2)


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe of one step on the digits that leaves the classifier as it is."""

    def write(calibrate, holdout):
        stage = {"name": "probe", "iterations": 1, "batch_size": 2, "trainable": ["classifier"]}
        stage |= {"optimizer": {"name": "sgd", "lr": 1e-12}, "methods": [] if calibrate else ["linear_probe"]}
        content = {
            "name": "probe",
            "data": {"use": "digits_lt", "holdout": holdout},
            "backbone": {"use": "cifar_resnet", "options": {"depth": 8}},
            "methods": {"linear_probe": {}},
            "stages": [stage],
            "calibrate": ["linear_probe"] if calibrate else [],
            "diagnostics": "off",
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(content))
        return path

    return write


def result_of(path, out):
    run = ltcore.run(path, out=out).path
    return run, json.loads((run / "result.json").read_text())


def test_a_run_is_the_fit_on_the_backbones_features(recipe, tmp_path):
    path = recipe(calibrate=False, holdout=2)
    run, result = result_of(path, tmp_path / "one")
    assert result_of(path, tmp_path / "two")[1]["after_calibration"] == result["after_calibration"]
    assert result["after_calibration"]["balanced_accuracy"] > 0.5  # of random features
    assert ltcore.load(run).model.classifier.weight.abs().max() > 0


def test_under_calibrate_it_replaces_the_classifier(recipe, tmp_path):
    _, result = result_of(recipe(calibrate=True, holdout=0), tmp_path)
    assert result["after_calibration"]["balanced_accuracy"] > result["before_calibration"]["balanced_accuracy"] + 0.3
