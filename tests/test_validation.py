"""Validations while a stage is trained: what they find, when they end it, and that a killed run ends alike."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import equal, from_numpy
from torch.nn.functional import cross_entropy

import ltcore
from ltcore.files.reading import read_lines
from ltcore.report import write_report

#: A learning rate so high that the balanced accuracy goes up and down.
STAGE = {
    "name": "s",
    "epochs": 14,
    "batch_size": 16,
    "optimizer": {"name": "sgd", "lr": 0.15, "momentum": 0.9},
    "validate_every": 1,
    "stop_after": 3,
    "keep": "best",
}
PARTS = {
    "data": {
        "use": "synthetic",
        "options": {"class_counts": [60, 40, 26, 20], "image_size": 8, "test_per_class": 20, "noise": 0.7},
        "holdout": 10,
    },
    "backbone": {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
    "diagnostics": "off",
    "checkpoint_seconds": 0,
}


def write(path, *stages, **parts):
    (path / "r.yaml").write_text(json.dumps({**PARTS, "stages": list(stages), **parts}))
    return path / "r.yaml"


def weights(run, name="stage-0-s"):
    return load_file(run.path / "checkpoints" / f"{name}.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(equal(one[name], two[name]) for name in one)


def scores(run, stage="s"):
    lines = [line for line in read_lines(run.path / "metrics.jsonl") if line["stage"] == stage]
    return {line["epoch"]: line["validation"]["balanced_accuracy"] for line in lines if "validation" in line}


def slow_end(values, patience):
    """The epoch after which a loop over the scores stops, and the best one until then."""
    best, since = 0, 0
    for epoch in range(1, len(values)):
        if values[epoch] > values[best]:
            best, since = epoch, 0
        else:
            since += 1
        if since == patience:
            return epoch, best
    return len(values) - 1, best


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The stage to its last epoch, validated at every one, with the weights of each."""
    path = tmp_path_factory.mktemp("whole")
    stage = {key: value for key, value in STAGE.items() if key not in ("stop_after", "keep")}
    return ltcore.run(write(path, stage), out=path / "runs")


@pytest.fixture(scope="module")
def early(tmp_path_factory):
    """The stage with its early end."""
    path = tmp_path_factory.mktemp("early")
    return ltcore.run(write(path, STAGE), out=path / "runs")


def test_figures_are_those_of_the_held_out_images(whole):
    last = read_lines(whole.path / "metrics.jsonl")[-1]["validation"]
    data = whole.read_data()
    logits = from_numpy(whole.model.classifier(from_numpy(whole.features("val"))).numpy())
    assert last["loss"] == pytest.approx(float(cross_entropy(logits, data.val.targets)), rel=1e-4)
    recalls = [np.mean((logits.argmax(1) == label)[data.val.targets == label].numpy()) for label in range(4)]
    assert last["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    told = whole.result["stages"][0]["validation"]
    assert all(last[name] == told[name] for name in ("top1", "balanced_accuracy", "ece"))
    assert len(scores(whole)) == 14 and len(set(scores(whole).values())) > 4


def test_looking_changes_nothing(whole, tmp_path):
    stage = {key: value for key, value in STAGE.items() if key not in ("validate_every", "stop_after", "keep")}
    assert same(weights(ltcore.run(write(tmp_path, stage), out=tmp_path / "runs")), weights(whole))


def test_a_stage_ends_where_a_slow_loop_does_with_the_best_weights(whole, early, tmp_path):
    values = [score for _, score in sorted(scores(whole).items())]
    end, best = slow_end(values, 3)
    assert 3 <= end < 13 and best < end, values  # else this tests nothing
    assert scores(early) == {epoch: values[epoch] for epoch in range(end + 1)}
    found = early.result["stages"][0]["validations"]
    assert found == {"best": values[best], "best_epoch": best, "since": 3, "epochs": end + 1, "stopped": True}
    # The figures at the stage's end are the best validation's, and the weights those of a run that ends there.
    assert early.result["stages"][0]["validation"]["balanced_accuracy"] == values[best]
    assert early.result["reported_epoch"] == "best" and whole.result["reported_epoch"] == "last"
    short = {**{key: STAGE[key] for key in ("name", "batch_size", "optimizer")}, "epochs": best + 1}
    assert same(weights(ltcore.run(write(tmp_path, short), out=tmp_path / "runs")), weights(early))


def test_with_keep_last_the_weights_are_those_of_the_last_epoch(whole, early, tmp_path):
    run = ltcore.run(write(tmp_path, {**STAGE, "keep": "last"}), out=tmp_path / "runs")
    found = early.result["stages"][0]["validations"]
    assert run.result["stages"][0]["validations"] == found and run.result["reported_epoch"] == "last"
    assert run.result["stages"][0]["validation"]["balanced_accuracy"] == scores(run)[found["epochs"] - 1]
    short = {**{key: STAGE[key] for key in ("name", "batch_size", "optimizer")}, "epochs": found["epochs"]}
    (tmp_path / "short").mkdir()
    assert same(weights(ltcore.run(write(tmp_path / "short", short), out=tmp_path / "short")), weights(run))


def test_every_third_epoch_and_the_last(tmp_path):
    run = ltcore.run(write(tmp_path, {**STAGE, "epochs": 7, "validate_every": 3, "stop_after": None}), out=tmp_path)
    assert list(scores(run)) == [2, 5, 6]


def test_a_killed_run_ends_alike(early, tmp_path, look_on):
    """Copies of the run as a kill would leave it, at four of its checkpoints, which it writes after each step."""
    found, steps = early.result["stages"][0]["validations"], 7
    places = {
        "s": [5, (found["best_epoch"] + 1) * steps + 2, found["epochs"] * steps],  # the last: before it ends early
        "t": [3],
    }
    written = {"s": 0, "t": 0}

    def copy(run, loop):
        name = loop.stage.name
        written[name] += 1
        if written[name] in places[name]:
            shutil.copytree(run.directory.path.parent, tmp_path / f"{name}{written[name]}" / "r")

    second = {"name": "t", "epochs": 1, "batch_size": 16, "optimizer": {"lr": 0.01}, "trainable": ["classifier"]}
    recipe = write(tmp_path, STAGE, {**second, "validate_every": 1})
    look_on(checkpoint_written=copy)
    straight = ltcore.run(recipe, out=tmp_path / "straight")
    look_on()
    assert straight.result["stages"][0]["validations"] == found and same(weights(straight), weights(early))
    killed = [tmp_path / f"{name}{number}" for name, numbers in places.items() for number in numbers]
    assert len(killed) == 4 and all((folder / "r").is_dir() for folder in killed)
    for folder in killed:
        resumed = ltcore.run(recipe, out=folder, resume=True)
        assert same(weights(resumed), weights(straight))
        assert scores(resumed) == scores(straight) and scores(resumed, "t") == scores(straight, "t") != {}
        assert np.array_equal(resumed.calibrated_logits, straight.calibrated_logits)
        for one, two in zip(resumed.result["stages"], straight.result["stages"], strict=True):
            assert one["validations"] == two["validations"] and one["test"] == two["test"]


def test_a_frozen_backbone_is_looked_through_once(tmp_path, monkeypatch):
    from ltcore.training.evaluation import Evaluation

    looked, real = [], Evaluation.outputs
    monkeypatch.setattr(Evaluation, "outputs", lambda self, split: looked.append(split) or real(self, split))
    stage = {**STAGE, "trainable": ["classifier"], "epochs": 4, "stop_after": None, "keep": "last"}
    run = ltcore.run(write(tmp_path, stage), out=tmp_path)
    assert looked.count("val") == 2 and len(scores(run)) == 4  # the first epoch, and the stage's end
    # The last of them is what the stage's end finds.
    assert scores(run)[3] == run.result["stages"][0]["validation"]["balanced_accuracy"]


def test_the_report_draws_them(early, tmp_path):
    write_report([early.path], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    section = text.split('id="training"')[1].split("</section>")[0]
    assert "Loss on training and held-out images" in section and "on held-out images</th>" in section
    best = max(scores(early).values())
    assert f">{100 * best:.1f}<" in section


def test_the_console_says_it(tmp_path, cli, capsys):
    recipe = write(tmp_path, STAGE)
    ltcore.run(recipe, out=tmp_path / "runs", quiet=False)
    out = capsys.readouterr().out
    *_, last, stopped, ended = (line for line in out.splitlines() if " epoch " in line or "done in" in line)
    wanted = r"  stopped after epoch \d+ of 14: the best was epoch \d+ \(held out \d+\.\d\), and is kept"
    assert re.fullmatch(wanted, stopped)
    assert "  held out " in last and ended.startswith("stage 1/1 s: done") and len(stopped) <= 80
    assert "validates   every epoch, until 3 bring nothing; ends with the best weights" in cli("plan", recipe).out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validate_every": None, "keep": "last"}, "stages.s.stop_after: nothing is validated here"),
        ({"validate_every": None, "stop_after": None}, "stages.s.keep: nothing is validated here"),
        ({"validate_every": 0}, "stages.s.validate_every: should be greater than 0"),
        ({"keep": "first"}, "stages.s.keep"),
    ],
)
def test_mistakes(tmp_path, cli, changes, message):
    stage = {key: value for key, value in {**STAGE, **changes}.items() if value is not None}
    cli("plan", write(tmp_path, stage)).is_one_message(2, "r.yaml:1", message)


def test_without_held_out_images_it_is_refused(tmp_path, cli):
    recipe = write(tmp_path, STAGE, data={**PARTS["data"], "holdout": 0})
    cli("plan", recipe).is_one_message(2, "r.yaml:1", "validate_every looks at held-out images", "set data.holdout")
