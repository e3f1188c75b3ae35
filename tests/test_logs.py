"""Logs beside metrics.jsonl: what is in them, a resumed run, and packages that are missing."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from ltcore.progress import logs
from ltcore.progress.logs import LoggingReporter
from ltcore.recipe.loading import load_recipe
from ltcore.training.execute import execute
from ltcore.training.observers import Checkpointer

TWO_STAGES = {
    "stages": [
        {"name": "one", "epochs": 3, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05}},
        {"name": "two", "iterations": 5, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.01}},
    ],
    "methods": {"tau_norm": {}},
    "calibrate": ["tau_norm"],
    "checkpoint_seconds": 0,
}


class Killed(Exception):
    pass


@pytest.fixture
def run(write_recipe, tmp_path, monkeypatch):
    """Run the recipe with logs; `killed_after` ends it as a kill would, after so many checkpoints inside a stage."""
    monkeypatch.setattr("ltcore.training.observers._SECONDS_BETWEEN_SHOWS", 0)
    loaded = load_recipe(write_recipe(**TWO_STAGES))

    def run(kinds, out="runs", resume=False, killed_after=None):
        reporter = LoggingReporter(kinds, loaded.source, stream=io.StringIO())
        with monkeypatch.context() as patch:
            if killed_after is not None:
                real, saved = Checkpointer.save, []

                def save(checkpointer, loop):
                    real(checkpointer, loop)
                    saved.append(loop)

                def step(*arguments):
                    # Every step is shown before its checkpoint: what is shown here will be trained again.
                    LoggingReporter.step(reporter, *arguments)
                    if len(saved) == killed_after:
                        raise Killed

                patch.setattr(Checkpointer, "save", save)
                patch.setattr(reporter, "step", step)
                patch.setattr(logs.TensorBoardLog, "close", lambda log: None)
                with pytest.raises(Killed):
                    execute(loaded, tmp_path / out, resume, reporter)
                return None
            return execute(loaded, tmp_path / out, resume, reporter)

    return run


def events(directory):
    """Tag -> the steps and values that TensorBoard shows."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(
        str(directory / "tensorboard"), size_guidance={"scalars": 0}
    )
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
        if not tag.endswith("images_per_second")
    }


def test_tensorboard_has_what_metrics_and_result_have(run):
    result, directory = run(["tensorboard"])
    found = events(directory)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for name in ("one", "two"):
        for key in ("loss", "lr"):
            told = [line[key] for line in lines if line["stage"] == name]
            assert [value for _, value in found[f"{name}/{key}"]] == pytest.approx(told, rel=1e-6)
    # 52 images in batches of 16: 4 steps an epoch. Stage two begins one step after the twelve of stage one.
    assert [step for step, _ in found["one/loss"]] == [4, 8, 12]
    assert [step for step, _ in found["one/loss_so_far"]] == list(range(12))
    assert [step for step, _ in found["two/loss_so_far"]] == list(range(13, 18))
    for index, name in enumerate(("one", "two")):
        told = result["stages"][index]["test"]
        for key in ("top1", "many", "medium", "few", "balanced_accuracy", "ece"):
            shown = [value for _, value in found.get(f"{name}/{key}", [])]
            assert shown == pytest.approx([] if told[key] is None else [told[key]], rel=1e-6)
    assert found["after_calibration/top1"][0][1] == pytest.approx(result["after_calibration"]["top1"], rel=1e-6)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("checkpoints", [0, 2, 4, 9, 12, 14])
def test_a_resumed_run_logs_every_point_once(run, checkpoints):
    whole = events(run(["tensorboard"], "whole")[1])
    run(["tensorboard"], killed_after=checkpoints)
    resumed = events(run(["tensorboard"], resume=True)[1])
    assert resumed == whole


def test_a_run_that_had_ended_is_not_logged_again(run):
    _, directory = run(["tensorboard"])
    before = events(directory)
    run(["tensorboard"], resume=True)
    assert events(directory) == before and len(list((directory / "tensorboard").iterdir())) == 1


def test_only_the_results_are_missing(run):
    _, directory = run(["tensorboard"])
    before = events(directory)
    (directory / "result.json").unlink()
    run(["tensorboard"], resume=True)
    assert events(directory) == before


class FakeWandb(SimpleNamespace):
    def init(self, **settings):
        self.begun.append(settings)
        return SimpleNamespace(
            log=lambda values, step: self.logged.append((step, values)), finish=lambda: self.ended.append(1)
        )


def test_wandb_keeps_its_id_and_its_steps_rise(run, monkeypatch):
    fake = FakeWandb(begun=[], logged=[], ended=[])
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run(["wandb"], killed_after=5)
    result, directory = run(["wandb"], resume=True)
    first, second = fake.begun
    assert first["id"] == second["id"] and first["resume"] == "allow" and first["group"] == "r"
    assert first["dir"] == str(directory) and first["config"]["stages"][0]["name"] == "one"
    assert len(fake.ended) == 2
    kept, last = {}, -1
    for step, values in fake.logged:  # the service ignores a step below the last one it has
        if step >= last:
            last = step
            for tag, value in values.items():
                kept.setdefault((tag, step), value)
    losses = [value for (tag, _), value in sorted(kept.items(), key=lambda item: item[0][1]) if tag == "one/loss"]
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert losses == [line["loss"] for line in lines if line["stage"] == "one"]
    assert result["after_calibration"]["top1"] in [values.get("after_calibration/top1") for _, values in fake.logged]


def test_where_the_points_of_a_run_stand(tmp_path, monkeypatch):
    fake = FakeWandb(begun=[], logged=[], ended=[])
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with LoggingReporter(["wandb"], {"name": "r"}, stream=io.StringIO()) as reporter:
        reporter.run_started("r", tmp_path, [])
        for index, (name, epochs) in enumerate((("one", 2), ("two", 1))):
            reporter.stage_started(name, index, 2, epochs, 3, 0)
            for epoch in range(epochs):
                for step in range(3):
                    reporter.step(epoch, step, lambda: 0.5, 1.0)
                reporter.epoch_ended(epoch, epochs, 0.5, 0.1, 1.0, 1.0)
            reporter.stage_ended(name, {"top1": 0.5}, 1.0)
        reporter.finished([("two", {"top1": 0.5}), ("after calibration", {"top1": 0.6})], tmp_path)
    places = {}
    for step, values in fake.logged:
        for tag in values:
            places.setdefault(tag, []).append(step)
    # A step's loss stands at its number, from 0; what comes after some steps stands at how many there were.
    assert places["one/loss_so_far"] == [0, 1, 2, 3, 4, 5] and places["one/loss"] == places["one/lr"] == [3, 6]
    assert places["one/top1"] == [6]
    # The second stage begins one further on, so that nothing of it stands where the first one was evaluated.
    assert places["two/loss_so_far"] == [7, 8, 9] and places["two/loss"] == places["two/top1"] == [10]
    assert places["after_calibration/top1"] == [11]


def test_wandb_that_refuses_is_one_message(run, monkeypatch, cli, write_recipe, tmp_path):
    def init(**settings):
        raise RuntimeError("no API key")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setattr(logs, "refuse_missing", lambda kinds: None)
    failed = cli("run", write_recipe(**TWO_STAGES), "--out", tmp_path / "runs", "--log", "wandb")
    failed.is_one_message(1, "--log wandb: no API key", "WANDB_MODE=offline")


def test_the_real_wandb_offline(run, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    _, directory = run(["wandb"])
    identity = json.loads((directory / "log.json").read_text())["wandb"]
    (written,) = (directory / "wandb").glob(f"offline-run-*/run-{identity}.wandb")
    assert written.stat().st_size > 0


@pytest.mark.parametrize(("kind", "extra"), [("tensorboard", "tb"), ("wandb", "wandb")])
def test_a_missing_package_is_one_message_that_names_the_extra(cli, write_recipe, tmp_path, monkeypatch, kind, extra):
    for found in (None, SimpleNamespace(origin=None)):
        monkeypatch.setattr(logs, "find_spec", lambda package, found=found: found)
        refused = cli("run", write_recipe(), "--out", tmp_path / "runs", "--log", kind)
        refused.is_one_message(2, f"--log {kind}: {kind} is not installed", f"pip install 'ltcore[{extra}]'")
    assert not (tmp_path / "runs").exists()


def test_logs_do_not_change_what_is_trained(run):
    (first, one), (second, two) = run(["tensorboard"], "a"), run([], "b")
    assert first["after_calibration"] == second["after_calibration"]
    assert not (two / "log.json").exists() and (one / "log.json").exists()
