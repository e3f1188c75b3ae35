"""Which hooks the first steps of a stage call: what is warned of, what is timed, and that neither stays for later."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ltcore_cifar_resnet import CifarResNet
from torch import nn

from ltcore import Method, hookimpl
from ltcore.contract.hookspecs import HOOKS, adjust_logits, auxiliary_losses, on_stage_start
from ltcore.discovery.binding import Entry, Hooks, implementations
from ltcore.discovery.offer import Offer
from ltcore.plan.plan import make_plan
from ltcore.recipe.loading import load_recipe
from ltcore.rehearsal.rehearsal import trace_hooks
from ltcore.training.trace import STEPS, HookTrace, asked, render

RECIPES = Path(__file__).parents[1] / "recipes"
LOGITS, RECORD = torch.zeros(1, 3), SimpleNamespace(losses={})
STAGE = {"name": "joint", "epochs": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.05}}


class Ticking:
    """A clock that only the test moves."""

    now = 0.0

    def __call__(self):
        return self.now


class Seconds(Method):
    """Takes a second in each hook, and two more where it asks for another hook within one."""

    auxiliary = ("zero",)

    def __init__(self, clock, inner=None):
        super().__init__()
        self.clock, self.inner = clock, inner

    @hookimpl
    def on_stage_start(self):
        self.clock.now += 1

    @hookimpl
    def adjust_logits(self, logits):
        self.clock.now += 1
        if self.inner:
            self.inner()
        return logits

    @hookimpl
    def auxiliary_losses(self):
        self.clock.now += 2
        return {"zero": torch.zeros(())}


def watched(method, clock, steps, classification=True):
    entry = Entry("slow", Offer("slow", "x:X", "ltcore-slow", "1.2"), method)
    hooks = Hooks(implementations([entry]), {})
    stage = SimpleNamespace(name="joint", classification=classification)
    state = SimpleNamespace(epoch=0, step=-1)
    warned, finished = [], []
    trace = HookTrace(stage, hooks, state, warned.append, finished.append, steps, clock)
    trace.warned, trace.told = warned, finished
    return hooks, state, trace


def test_what_a_call_within_another_takes_counts_once():
    clock = Ticking()
    method = Seconds(clock)
    hooks, state, watch = watched(method, clock, steps=2)
    method.inner = lambda: hooks.call(auxiliary_losses, RECORD, LOGITS)
    hooks.call(on_stage_start)
    watch.epoch_started(None)
    for step in range(2):
        state.step = step
        hooks.call(adjust_logits, LOGITS, None, RECORD)
        clock.now += 7
        watch.step_ended(None)
    assert watch.told == [watch] and watch.warned == []
    described = watch.describe()
    assert (described["name"], described["steps"], described["step_ms"]) == ("joint", 2, 10_000)
    rows = {row["hook"]: row for row in described["hooks"]}
    assert list(rows) == ["on_stage_start", "adjust_logits", "auxiliary_losses"]  # as they began
    assert [row["order"] for row in rows.values()] == [1, 2, 3] and [r["calls"] for r in rows.values()] == [1, 2, 2]
    assert (rows["adjust_logits"]["total_ms"], rows["adjust_logits"]["call_ms"]) == (2_000, 1_000)
    assert (rows["auxiliary_losses"]["total_ms"], rows["auxiliary_losses"]["first_ms"]) == (4_000, 2_000)
    assert [row["share"] for row in rows.values()] == [None, 0.1, 0.2]
    assert (rows["on_stage_start"]["method"], rows["on_stage_start"]["distribution"]) == ("slow", "ltcore-slow")
    lines = render(described, "cpu")
    assert lines[0] == "stage joint: hooks in the first 2 steps, 10000.00 ms each"
    assert re.fullmatch(
        r"   2  adjust_logits +2 +2000\.000 +1000\.000 +1000\.000 +10\.0 %  slow \(ltcore-slow 1\.2\)", lines[3]
    )
    assert lines[-1].endswith("optimiser: 70.0 %")
    assert render(described, "cuda")[-1].strip().startswith("Times are the host's")


def test_lines_of_a_trace(tmp_path):
    clock = Ticking()
    method = Seconds(clock)
    hooks, state, watch = watched(method, clock, steps=1)
    method.inner = lambda: hooks.call(auxiliary_losses, RECORD, LOGITS)
    hooks.call(on_stage_start)
    watch.epoch_started(None)
    state.step = 0
    hooks.call(adjust_logits, LOGITS, None, RECORD)
    watch.write(tmp_path / "trace.jsonl")
    watch.write(tmp_path / "trace.jsonl")  # a second stage adds to the file
    lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert lines[:3] == lines[3:]
    common = {"stage": "joint", "epoch": 0, "method": "slow"}
    assert lines[0] == {**common, "step": None, "hook": "on_stage_start", "start_ms": 0, "duration_ms": 1000}
    assert lines[1] == {**common, "step": 0, "hook": "adjust_logits", "start_ms": 1000, "duration_ms": 3000}
    assert lines[2] == {**common, "step": 0, "hook": "auxiliary_losses", "start_ms": 2000, "duration_ms": 2000}


def test_a_call_that_raises_is_timed_and_raises():
    clock = Ticking()
    hooks, _, watch = watched(Seconds(clock, inner=lambda: 1 / 0), clock, steps=1)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        hooks.call(adjust_logits, LOGITS, None, RECORD)
    assert [call.seconds for call in watch.calls] == [1] and not watch._within


@pytest.mark.parametrize("steps", [0, 3])
def test_afterwards_the_hooks_are_called_as_if_nobody_had_looked(steps):
    clock = Ticking()
    hooks, _, watch = watched(Seconds(clock), clock, steps)
    hooks.call(adjust_logits, LOGITS, None, RECORD)
    assert (len(watch.calls), len(watch._fired)) == (int(steps > 0), 1)
    watch._fired.clear()
    watch.stage_ended(None)
    hooks.call(adjust_logits, LOGITS, None, RECORD)
    assert (len(watch.calls), len(watch._fired)) == (int(steps > 0), 0)
    assert watch.told == [watch]
    watch.step_ended(None)
    watch.stage_ended(None)
    assert watch.told == [watch] and not watch.steps  # told once


@pytest.mark.parametrize("classification", [True, False])
def test_a_stage_without_classification_calls_no_hooks_of_it(classification):
    hooks, _, watch = watched(Seconds(Ticking()), Ticking(), 0, classification)
    hooks.call(auxiliary_losses, RECORD, LOGITS)
    watch.step_ended(None)
    assert len(watch.warned) == classification
    if classification:
        assert watch.warned == [
            "stage 'joint': the first step did not call adjust_logits of 'slow' (ltcore-slow 1.2): tell its author"
        ]
    watch.step_ended(None)
    assert len(watch.warned) == classification  # said once


# A run


class Branching(CifarResNet):
    """Its network has a module that no forward pass comes by."""

    @hookimpl
    def build_backbone(self, in_channels, image_size):
        backbone = super().build_backbone(in_channels)
        backbone.branch = nn.Identity()
        backbone.inner_taps = (*backbone.inner_taps, "branch")
        backbone.net = None
        return backbone


class Shift(Method):
    tap = "branch"

    @hookimpl
    def augment_features(self, features):
        return replace(features, features=features.features + 1)

    @hookimpl
    def on_epoch_end(self):
        """Keeps the method busy: it is no mistake that a first step does not come here."""


SILENT = (
    "warning: stage 'joint': the first step did not call augment_features of 'shift' (ltcore-tests 0.0) at tap "
    "'branch': the backbone never came by that tap; choose another ('ltcore plan --taps' lists them)"
)


def test_a_tap_that_is_never_reached_is_a_warning(cli, write_recipe, offer_methods, tmp_path):
    offer_methods(branching=Branching, shift=Shift)
    backbone = {"use": "branching", "options": {"depth": 8, "width": 4}}
    path = write_recipe(backbone=backbone, methods={"shift": {}}, stages=[{**STAGE, "methods": ["shift"]}])
    done = cli("run", path, "--out", tmp_path / "runs")
    assert (done.code, done.err) == (0, "") and done.out.count(SILENT) == done.out.count("warning") == 1
    assert SILENT in json.loads(cli("rehearse", path, "--steps", "1", "--json").out)["notes"]
    assert SILENT in trace_hooks(path)["notes"] and f"  note      {SILENT}\n" in cli("trace", path).out


@pytest.mark.sampled(12)
@pytest.mark.parametrize("path", sorted(RECIPES.glob("digits*.yaml")), ids=lambda path: path.stem)
def test_no_recipe_of_ours_warns_and_each_is_traced(path):
    found = trace_hooks(path)
    assert not [note for note in found["notes"] if "warning" in note]
    plan = make_plan(load_recipe(path), to_run=False)
    for planned, traced in zip(plan.stages, found["stages"], strict=True):
        assert planned.stage.name == traced["name"] and 1 <= traced["steps"] <= STEPS and traced["step_ms"] > 0
        called = {(row["hook"], row["method"]): row for row in traced["hooks"]}
        for hook in (hook.name for hook in HOOKS.values() if hook.called == "step"):
            for answer in planned.answers[hook]:
                row = called[hook, answer.entry.key]
                assert row["calls"] % traced["steps"] == 0 and 0 < row["share"] < 1
                assert 0 < row["first_ms"] <= row["total_ms"]
        for hook in ("on_stage_start", "build_sampler", "on_epoch_start", "class_weights", "class_distribution"):
            for answer in planned.answers[hook]:
                assert called[hook, answer.entry.key]["share"] is None


def test_a_run_is_traced_where_the_environment_asks_for_it(cli, write_recipe, tmp_path, monkeypatch):
    stages = [
        {**STAGE, "name": "one", "methods": ["focal"]},
        {**STAGE, "name": "two", "epochs": None, "iterations": 2, "methods": ["focal", "cdt"]},
    ]
    path = write_recipe(methods={"focal": {}, "cdt": {}}, stages=stages)

    def run(name):
        done = cli("run", path, "--out", tmp_path / name)
        assert (done.code, done.err) == (0, "")
        (directory,) = (tmp_path / name / "r").iterdir()
        return done.out, directory

    monkeypatch.setenv("LTCORE_TRACE", "0")
    text, plain = run("plain")
    assert not asked() and "hooks in" not in text and not (plain / "trace.jsonl").exists()
    monkeypatch.setenv("LTCORE_TRACE", "1")
    text, traced = run("traced")
    assert text.count("hooks in the first") == 2
    assert re.search(
        r"^stage one: hooks in the first 5 steps, .*\n.*\n   1  compute_loss +5 .* focal \(", text, re.MULTILINE
    )
    assert re.search(r"^stage two: hooks in the first 2 steps, ", text, re.MULTILINE)  # it has no more
    lines = [json.loads(line) for line in (traced / "trace.jsonl").read_text().splitlines()]
    losses = [(x["stage"], x["epoch"], x["step"]) for x in lines if x["hook"] == "compute_loss"]
    assert losses == [*(("one", 0, step) for step in range(5)), ("two", 0, 0), ("two", 0, 1)]
    for stage in ("one", "two"):
        starts = [line["start_ms"] for line in lines if line["stage"] == stage]
        assert starts == sorted(starts) and starts[0] >= 0
    # Looking changes nothing.
    results = [json.loads((directory / "result.json").read_text()) for directory in (plain, traced)]
    assert results[0]["after_calibration"] == results[1]["after_calibration"]


def test_a_trace_reads_no_data_and_keeps_nothing(cli, write_recipe, tmp_path, monkeypatch):
    monkeypatch.delenv("LTCORE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    path = write_recipe(data="{use: cifar10_lt}", methods="{focal: {}}", stages=[{**STAGE, "methods": ["focal"]}])
    before = set(tmp_path.rglob("*"))
    found = json.loads(cli("trace", path, "--json").out)
    assert set(tmp_path.rglob("*")) == before
    assert (found["recipe"], found["device"]) == ("r", "cpu") and "noise stands for the images" in found["notes"][0]
    (stage,) = found["stages"]
    assert stage["steps"] == STEPS and [row["hook"] for row in stage["hooks"]] == ["compute_loss"]
    assert list(stage["hooks"][0]) == [
        "order", "hook", "method", "distribution", "version", "calls", "total_ms", "call_ms", "first_ms", "share",
    ]  # fmt: skip
