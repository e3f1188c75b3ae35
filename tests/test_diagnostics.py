import json

import numpy as np
import pytest
import torch
from torch import nn

from ltcore.evaluation.diagnostics import class_accuracy, diagnose, feature_deviation


def deviation(train, train_targets, test, test_targets, classes, **options):
    return feature_deviation(
        torch.tensor(train), torch.tensor(train_targets), torch.tensor(test), torch.tensor(test_targets), classes,
        torch.Generator().manual_seed(0), **options,
    )  # fmt: skip


def test_worked_out_by_hand():
    # Class 0 points right in training and at (0.6, 0.8) in testing: sqrt(0.4**2 + 0.8**2) apart. Class 1 is in its
    # place, whatever the lengths. Class 2 has no test image.
    train = [[2.0, 0.0], [5.0, 0.0], [0.0, 3.0], [0.0, 7.0], [0.0, -1.0]]
    found = deviation(train, [0, 0, 1, 1, 2], [[3.0, 4.0], [0.0, 9.0]], [0, 1], 3)
    assert found == [pytest.approx(0.8**0.5), 0.0, None]


def test_small_classes_are_not_far_by_chance():
    # Two classes with one distribution, 400 and 4 images: with K = 4 for both, the distances are alike; by the plain
    # means the small class would lie ten times as far off.
    rng = np.random.default_rng(0)

    def draw(n):
        return rng.normal(size=(n, 16)) + 1

    targets, tests = np.repeat([0, 1], [400, 4]), np.repeat([0, 1], [2000, 2000])
    found = [deviation(draw(404), targets, draw(4000), tests, 2, rounds=200) for _ in range(20)]
    large, small = np.mean(found, axis=0)
    assert 0.8 < small / large < 1.25


@pytest.mark.parametrize("chunk", [1, 40, 2**25])
def test_against_a_slow_loop_over_the_same_draws(monkeypatch, chunk):
    monkeypatch.setattr("ltcore.evaluation.diagnostics._CHUNK_VALUES", chunk)
    rng = np.random.default_rng(1)
    train, test = rng.normal(size=(9, 3)), rng.normal(size=(6, 3))
    targets, tests = np.array([0, 1, 1, 0, 1, 1, 0, 1, 1]), np.array([0, 1, 0, 1, 0, 1])
    generator = torch.Generator().manual_seed(0)

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    for label, found in enumerate(deviation(train, targets, test, tests, 2, rounds=7)):
        own, center = unit(train[targets == label]), unit(test[tests == label]).mean(0)
        step, distances = max(1, chunk // max(len(own), 3 * 3)), []
        for start in range(0, 7, step):
            for keys in torch.rand(min(step, 7 - start), len(own), generator=generator).numpy():
                distances.append(np.linalg.norm(own[np.argsort(keys)[:3]].mean(0) - center))
        assert len(distances) == 7 and found == pytest.approx(np.mean(distances), rel=1e-6)


def test_accuracy_and_norms():
    assert class_accuracy(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1]), 3) == [
        1.0,
        pytest.approx(1 / 3),
        None,
    ]
    classifier = nn.Linear(2, 2)
    classifier.weight.data = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    outputs = torch.eye(2), torch.eye(2), torch.tensor([0, 1])
    found = diagnose(classifier, outputs, outputs, 2, torch.Generator())
    assert found["classifier_norm"] == [5.0, 2.0] and found["feature_deviation"] == [0.0, 0.0]
    assert found["train_accuracy"] == found["test_accuracy"] == [1.0, 1.0]


@pytest.mark.parametrize("when", ["off", "stage", "epoch"])
def test_when_a_run_writes_them(make_run, when):
    run = make_run(diagnostics=when)
    result = run.execute()
    lines = [json.loads(line) for line in (run.directory.path / "metrics.jsonl").read_text().splitlines()]
    assert all(("diagnostics" in line) == (when == "epoch") for line in lines)
    assert all(("diagnostics" in stage) == (when != "off") for stage in result["stages"])
    if when != "off":
        found = result["stages"][-1]["diagnostics"]
        assert found["test_accuracy"] == result["before_calibration"]["per_class_accuracy"]
        assert len(found["feature_deviation"]) == result["num_classes"] and min(found["feature_deviation"]) > 0
    if when == "epoch":
        last, stage = lines[-1]["diagnostics"], result["stages"][-1]["diagnostics"]
        assert last["train_accuracy"] == stage["train_accuracy"]  # the same model
