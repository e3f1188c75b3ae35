"""Methods of different papers in one stage, and another method's stage behind it: trained, killed, gone on with to the
bit, opened again, exported. A further combination is one line of `FIRST`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import cycle

import numpy as np
import pytest

import ltcore
from ltcore.discovery.binding import Implementation
from ltcore.export import export
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.training.execute import execute

#: The methods of the first stage, in their order.
FIRST = (
    "cmo + bcl + ldam + drw + sam",
    "bcl + balanced_softmax + mixup + drs",
    "cmo + safa + ldam",
    "sam + ldam + drw",
    "l2rw + focal + balanced_softmax",
    "meta_weight_net + mixup + ldam",
    "imbsam + safa + balanced_softmax",
)
#: What a method of those needs to act within four epochs; the others have their defaults.
OPTIONS = {
    "bcl": {"embedding_dim": 16},
    "cmo": {"start_epoch": 1, "plain_at_end": 0},
    "drs": {"start_epoch": 1},
    "drw": {"start_epoch": 1},
    "meta_weight_net": {"through_loss": False},  # the paper's equations; through a loss of scale 30 weights go to 0
    "safa": {"start_epoch": 1},
}
#: Methods of those that have networks of their own to train.
NETWORKS = {"bcl", "meta_weight_net", "safa"}

COMMON = {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}
#: What may come behind: its methods with their options, and its stages.
SECOND = {
    "ofa": ({"ofa": {}}, [{"name": "two", "epochs": 2, "methods": ["ofa"], "trainable": ["classifier"], **COMMON}]),
    "stg": (
        {"stg": {}},
        [
            {
                "name": "generator",
                "epochs": 1,
                "methods": ["stg"],
                "classification": False,
                "trainable": ["stg"],
                **COMMON,
            },
            {"name": "two", "epochs": 2, "methods": ["stg"], "trainable": ["classifier"], **COMMON},
        ],
    ),
    "glag": (
        {"gra_loss": {}, "lws": {}, "afg": {"head_images": 10}, "distillation": {"head_images": 10}},
        [
            {
                **{"name": "two", "epochs": 2, "methods": ["gra_loss", "lws", "afg", "distillation"]},
                **{"trainable": ["classifier"], **COMMON},
            }
        ],
    ),
}
#: The combination's first stage is trained with one of them in the default run, and with all in the slow one.
QUICK = dict(zip(FIRST, cycle(SECOND), strict=False))
ALL = [
    pytest.param(first, second, marks=() if QUICK[first] == second else pytest.mark.slow, id=f"{first}, {second}")
    for first in FIRST
    for second in SECOND
]


def recipe(folder, first, second):
    """The combination as a recipe in a folder, and the names of its methods."""
    names = first.split(" + ")
    behind, stages = SECOND[second]
    methods = {**{name: OPTIONS.get(name, {}) for name in names}, **behind}
    trainable = ["backbone", "classifier", *(name for name in names if name in NETWORKS)]
    data = {"class_counts": [48, 24, 10, 6], "image_size": 8, "test_per_class": 8}
    whole = {
        "name": "r",
        "device": "cpu",
        "threads": 1,
        "checkpoint_seconds": 0,
        "data": {"use": "synthetic", "options": data, "holdout": 1, "transform": {"crop_padding": 1}},
        "backbone": {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        "methods": {name: {"options": options} for name, options in methods.items()},
        "stages": [{"name": "one", "epochs": 4, "methods": names, "trainable": trainable, **COMMON}, *stages],
    }
    path = folder / "r.yaml"
    path.write_text(json.dumps(whole))
    return path, set(methods)


def outcome(path):
    """All that must be equal: JSON keeps every bit of a float, and the rest is bytes."""

    def without_times(found):
        if isinstance(found, list):
            return [without_times(item) for item in found]
        if isinstance(found, dict):
            return {k: without_times(v) for k, v in found.items() if k not in ("seconds", "images_per_second")}
        return found

    with np.load(path / "predictions.npz") as arrays:
        predictions = {name: arrays[name].tobytes() for name in arrays}
    return {
        "predictions": predictions,
        "result": without_times(json.loads((path / "result.json").read_text())),
        "metrics": [without_times(json.loads(line)) for line in (path / "metrics.jsonl").read_text().splitlines()],
        "stages": {file.name: file.read_bytes() for file in path.glob("checkpoints/stage-*")},
    }


def train(loaded, out, resume=False):
    _, path = execute(loaded, out, resume, Reporter.silent())
    return path


@pytest.fixture
def acted(monkeypatch):
    """The methods that have answered a hook which is not one of a beginning."""
    found, bind = set(), Implementation.bind

    def watching(self, *arguments, **keywords):
        call = bind(self, *arguments, **keywords)

        def watched(*values, **named):
            if self.hook not in ("on_run_start", "on_stage_start", "on_epoch_start"):
                found.add(self.entry.key)
            return call(*values, **named)

        return watched

    monkeypatch.setattr(Implementation, "bind", watching)
    return found


@pytest.fixture
def copy_inside(look_on, tmp_path):
    """Runs leave in ``killed-STAGE`` what a kill inside the stage's second epoch would leave; a call ends it."""

    def copy(run, loop):
        folder = tmp_path / f"killed-{loop.stage.name}"
        if loop.position.epoch == min(1, loop.epochs - 1) and loop.position.step == 3 and not folder.exists():
            shutil.copytree(run.directory.path.parent, folder / "r")

    look_on(checkpoint_written=copy)
    return look_on


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("first", "second"), ALL)
def test_in_one_stage_then_another_method(tmp_path, acted, copy_inside, first, second):
    path, methods = recipe(tmp_path, first, second)
    loaded = load_recipe(path)
    whole = train(loaded, tmp_path / "runs")
    assert methods <= acted
    copy_inside()  # no more
    killed = sorted(tmp_path.glob("killed-*"))
    assert len(killed) == len(loaded.recipe.stages)
    for folder in killed:
        resumed = train(loaded, folder, resume=True)
        assert resumed.parents[1] == folder and outcome(resumed) == outcome(whole)
    saved = ltcore.load(whole)
    assert np.isfinite(saved.logits).all() and len(saved.model.state_dict()) > 0  # which compares it with the run's
    assert saved.metrics["top1"] > 0.25  # four classes


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST)
def test_killed_for_real_gone_on_with_and_exported(tmp_path, first):
    path, _ = recipe(tmp_path, first, QUICK[first])
    whole = train(load_recipe(path), tmp_path / "whole")
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, "run", str(path), "--out", str(killed)]
    ended = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    resumed = train(load_recipe(path), killed, resume=True)
    assert outcome(resumed) == outcome(whole)
    target = tmp_path / "model.onnx"
    said = export(ltcore.load(resumed), "onnx", target)  # which compares its logits with the run's on all test images
    assert target.is_file() and any("32 test images" in line for line in said)


#: ``ltcore`` that kills itself in the tenth forward pass, which is in the second epoch.
KILLED = """
import os, signal
from ltcore.cli import main
from ltcore.training.step import StepForward

seen, real = [], StepForward.__call__

def forward(self, *values):
    seen.append(self)
    if len(seen) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *values)

StepForward.__call__ = forward
main()
"""
