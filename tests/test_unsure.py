"""Thresholds below which predictions are unsure: against a slow loop, and on their way through a run."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from scipy.special import softmax

import ltcore
from ltcore.contract.recipe import Unsure
from ltcore.errors import RunError
from ltcore.evaluation.unsure import choose, summary, sureness
from ltcore.export import export
from ltcore.export.deployed import Marked
from ltcore.report import write_report
from ltcore.runs.evaluating import evaluate, render, write
from ltcore.runs.prediction_files import predict_into


def slow(logits, targets, precision, least):
    """For each class the lowest probability of one of its predictions at which those above are precise enough."""
    shares = softmax(logits.astype(np.float64), axis=1)
    classes = logits.shape[1]
    predictions = [int(np.argmax(row)) for row in logits]
    sharing = [label for label in range(classes) if predictions.count(label) < least]

    def threshold(group):
        rows = [(shares[n, predictions[n]], predictions[n] == targets[n]) for n in range(len(targets))]
        rows = [row for n, row in enumerate(rows) if predictions[n] in group]
        best = None
        for candidate, _ in rows:
            above = [right for share, right in rows if share >= candidate]
            enough = len(above) >= least and sum(above) >= precision * len(above) - 1e-9
            if enough and (best is None or candidate < best):
                best = candidate
        return best

    return [threshold(sharing if label in sharing else [label]) for label in range(classes)], sharing


def some(seed, images=300, classes=6, size=2.0):
    random = np.random.default_rng(seed)
    shares = 0.5 ** np.arange(classes)
    targets = random.choice(classes, images, p=shares / shares.sum())
    logits = random.normal(size=(images, classes))
    logits[np.arange(images), targets] += 1.5
    return (size * logits).round(1).astype(np.float32), targets  # rounded, so that some probabilities are equal


@given(
    st.integers(0, 10**6),
    st.sampled_from([5, 40, 150]),
    st.sampled_from([0.5, 0.8, 0.9, 0.97, 1.0]),
    st.sampled_from([1, 3, 10]),
)
def test_thresholds_are_those_of_a_slow_loop_and_reach_their_precision(seed, images, precision, least):
    logits, targets = some(seed, images)
    thresholds, sharing, always = choose(torch.from_numpy(logits), torch.from_numpy(targets), precision, least)
    wanted, shared = slow(logits, targets, precision, least)
    assert sharing == shared and always == [label for label, value in enumerate(wanted) if value is None]
    for value, lowest in zip(thresholds.values, wanted, strict=True):
        assert (value is None) == (lowest is None)
        assert value is None or lowest - 1.0001e-4 <= value <= lowest + 1e-12
    # What is sure, is right often enough: of each class with its own threshold, and of those that share one together.
    shares, predictions = softmax(logits.astype(np.float64), axis=1).max(1), logits.argmax(1)
    lowest = np.array([np.inf if value is None else value for value in wanted])
    sure = shares >= lowest[predictions] - 1e-12
    found = thresholds.unsure(torch.from_numpy(predictions), torch.from_numpy(shares)).numpy()
    np.testing.assert_array_equal(found, ~sure)
    groups = [[label] for label in range(6) if label not in shared] + [shared]
    for group in groups:
        kept = sure & np.isin(predictions, group)
        assert not kept.any() or (kept.sum() >= least and (predictions == targets)[kept].mean() >= precision - 1e-9)


def test_where_every_class_has_a_threshold_all_that_is_sure_reaches_the_precision():
    logits, targets = some(0, 2000, size=1.0)
    thresholds, _, _ = choose(torch.from_numpy(logits), torch.from_numpy(targets), 0.9, 10)
    told = sureness(thresholds, torch.from_numpy(logits), torch.from_numpy(targets))
    plain = (logits.argmax(1) == targets).mean()
    assert plain < 0.8 and told["precision"] >= 0.9 and 0.1 < told["coverage"] < 0.9
    assert sum(told["right"]) / sum(told["sure"]) == told["precision"]
    assert summary(told, 0.9).endswith("of these right (90 % was asked for)")


def test_no_image_is_sure_where_nothing_is_right():
    logits = torch.eye(3).repeat(20, 1)
    thresholds, sharing, always = choose(logits, torch.arange(60).add(1) % 3, 0.5, 10)
    assert (sharing, always) == ([], [0, 1, 2])
    told = sureness(thresholds, logits, torch.arange(60) % 3)
    assert told["coverage"] == 0 and told["precision"] is None and summary(told, 0.5).startswith("none is sure")


def test_nine_of_ten_are_nine_tenths():
    logits = torch.tensor([[2.0, 0.0]]).repeat(10, 1)
    assert choose(logits, torch.tensor([0] * 9 + [1]), 0.9, 10)[0].values[0] is not None
    assert choose(logits, torch.tensor([0] * 8 + [1] * 2), 0.9, 10)[0].values[0] is None


# -- in a run ----------------------------------------------------------------------------------------------------------

PARTS = {
    "data": {
        "use": "synthetic",
        "options": {"class_counts": [90, 60, 40, 24], "image_size": 8, "test_per_class": 30, "noise": 0.6},
        "holdout": 12,
    },
    "backbone": {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
    "methods": {"temperature": {}},
    "stages": [{"name": "s", "epochs": 4, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}}],
    "calibrate": ["temperature"],
    "unsure": {"precision": 0.8, "least": 8},
    "diagnostics": "off",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with thresholds."""
    path = tmp_path_factory.mktemp("unsure")
    (path / "r.yaml").write_text(json.dumps(PARTS))
    return ltcore.run(path / "r.yaml", out=path / "runs")


def test_a_run_chooses_them_on_its_held_out_images(trained):
    told = trained.result["unsure"]
    features = torch.from_numpy(trained.features("val"))
    logits = trained.model.classifier(features).numpy()
    targets = trained.read_data().val.targets.numpy()
    wanted, shared = slow(logits, targets, 0.8, 8)
    assert len(targets) == told["images"] == 48
    for value, lowest in zip(told["thresholds"], wanted, strict=True):
        assert value == pytest.approx(lowest, abs=2e-4) if lowest is not None else value is None
    assert told["shared"] == [trained.class_names[label] for label in shared]
    assert told["always"] == [name for name, value in zip(trained.class_names, wanted, strict=True) if value is None]
    assert trained.description.unsure.values == tuple(told["thresholds"])
    held = told["held_out"]
    assert held["precision"] >= 0.8 and 0 < held["coverage"] < 1, held


def test_a_threshold_may_rest_on_one_prediction_and_not_on_none():
    assert Unsure(precision=0.9, least=1).least == 1
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Unsure(precision=0.9, least=0)


def test_its_test_images_are_marked(trained):
    values = trained.description.unsure.values
    shares = softmax(trained.calibrated_logits.astype(np.float64), axis=1).max(1)
    labels = trained.calibrated_logits.argmax(1)
    unsure = [values[label] is None or share < values[label] for label, share in zip(labels, shares, strict=True)]
    with (trained.path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["unsure"] for row in rows] == ["yes" if mark else "no" for mark in unsure]
    told, sure = trained.result["unsure"]["test"], ~np.array(unsure)
    assert told["coverage"] == sure.mean() and 0 < sure.sum() < len(sure)
    assert told["precision"] == pytest.approx((labels == trained.targets)[sure].mean())


def test_predict_and_evaluate_apply_them(trained, tmp_path, capsys):
    test = trained.read_data().test
    (tmp_path / "photos").mkdir()
    for name in trained.class_names:
        (tmp_path / "labelled" / name).mkdir(parents=True)
    pixels = test.images.permute(0, 2, 3, 1).numpy()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number:03}.png")
        Image.fromarray(image).save(
            tmp_path / "labelled" / trained.class_names[int(test.targets[number])] / f"{number:03}.png"
        )
    with (trained.path / "predictions.csv").open() as file:
        wanted = [row["unsure"] for row in csv.DictReader(file)]
    assert list(trained.predict(pixels).unsure) == [mark == "yes" for mark in wanted]
    predict_into(trained, [tmp_path / "photos"], 2, tmp_path / "p.csv", False, 64, 0)
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["unsure"] for row in rows] == wanted and list(rows[0])[-1] == "unsure"
    capsys.readouterr()
    predict_into(trained, [tmp_path / "photos"], 2, None, True, 64, 0)
    assert [row["unsure"] for row in json.loads(capsys.readouterr().out)] == [mark == "yes" for mark in wanted]
    predict_into(trained, [tmp_path / "photos"], 2, None, False, 64, 0)
    lines = capsys.readouterr().out.splitlines()
    assert [": unsure: " in line for line in lines] == [mark == "yes" for mark in wanted]

    found = evaluate(trained, tmp_path / "labelled", workers=0)
    assert found.content["unsure"] == {"asked": 0.8, **trained.result["unsure"]["test"]}
    assert any("are sure, and" in line for line in render(found))
    write(found, tmp_path / "out")
    with (tmp_path / "out" / "errors.csv").open() as file:
        errors = list(csv.DictReader(file))
    assert {row["unsure"] for row in errors} <= {"yes", "no"} and errors
    other = evaluate(trained, tmp_path / "labelled", prior="uniform", workers=0)
    assert "unsure" not in other.content and any("do not hold for adjusted outputs" in note for note in other.notes)


@pytest.mark.parametrize("to", ["torch_export", "torchscript", "onnx"])
def test_exports_mark_what_is_unsure(trained, tmp_path, to):
    """The second output says what the run's files say."""
    images = trained.description.normalised(trained.read_data().test.images)
    if to == "onnx":
        runtime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    path = tmp_path / {"torch_export": "m.pt2", "torchscript": "m.pt", "onnx": "m.onnx"}[to]
    export(trained, to, path)
    extra = {"ltcore.json": ""}
    if to == "torch_export":
        logits, unsure = torch.export.load(str(path), extra_files=extra).module()(images)
    elif to == "torchscript":
        logits, unsure = torch.jit.load(str(path), _extra_files=extra)(images)
    else:
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        logits, unsure = map(torch.from_numpy, session.run(["logits", "unsure"], {"images": images.numpy()}))
        extra = session.get_modelmeta().custom_metadata_map
    about = json.loads(extra["ltcore.json"])["unsure"]
    assert about["precision"] == 0.8 and about["thresholds"] == trained.result["unsure"]["thresholds"]
    marks = [
        about["thresholds"][label] is None or share < about["thresholds"][label]
        for share, label in zip(*(each.tolist() for each in logits.double().softmax(1).max(1)), strict=True)
    ]
    assert unsure.tolist() == marks and 0 < sum(marks) < len(marks)
    assert 1 - np.mean(marks) == pytest.approx(trained.result["unsure"]["test"]["coverage"])


def test_an_export_that_marks_wrongly_is_refused(trained, monkeypatch, tmp_path):
    forward = Marked.forward
    monkeypatch.setattr(Marked, "forward", lambda self, images: (forward(self, images)[0], ~forward(self, images)[1]))
    with pytest.raises(RunError, match="does not mark as unsure what lies below the thresholds"):
        export(trained, "torch_export", tmp_path / "m.pt2")
    assert not (tmp_path / "m.pt2").exists()


def test_the_hub_folders_example_says_which_are_unsure(trained, tmp_path, monkeypatch, capsys):
    export(trained, "hub", tmp_path / "hub")
    monkeypatch.chdir(tmp_path / "hub")
    code = (tmp_path / "hub" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code, {})
    assert capsys.readouterr().out.split()[-1] in ("sure", "unsure")


def test_the_report_shows_coverage_and_precision(trained, tmp_path):
    write_report([trained.path], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    section = text.split('id="unsure"')[1].split("</section>")[0]
    told = trained.result["unsure"]["test"]
    assert f">{100 * told['coverage']:.1f}<" in section and f">{100 * told['precision']:.1f}<" in section
    tables = section.split("<table>")[1:]
    assert len(tables) == 2
    for head, *rows in (table.split("<tr>")[1:] for table in tables):
        assert rows and {len(re.findall("<t[hd]", row)) for row in rows} == {head.count("<th")}


def test_without_held_out_images_it_is_refused(write_recipe, cli):
    path = write_recipe(unsure={"precision": 0.9})
    cli("plan", path).is_one_message(2, "r.yaml:4", "chosen on held-out images", "set data.holdout")
    path = write_recipe(unsure={"precision": 1.5}, data={**PARTS["data"]})
    cli("plan", path).is_one_message(2, "r.yaml:4", "unsure.precision")
    path = write_recipe(unsure={"precision": 0.9}, data={**PARTS["data"]})
    assert "unsure below a threshold of the class: precision 0.9 on 10" in cli("plan", path).out
