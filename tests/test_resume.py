"""A run that is killed, by a real SIGKILL, goes on with --resume to the very figures of one that was not.

Starting Python with torch takes seconds, so one process imports both and forks a child for every run. In the child a
chosen call of a chosen function kills it: the moments are exact, and nothing here sleeps.
"""

import builtins
import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from importlib import import_module

import numpy as np
import pytest
import torch

from ltcore.files.run_directory import RunDirectory

# ---------------------------------------------------------------- the process that forks

#: All that a run imports; torch._dynamo comes with the first step of an optimiser.
IMPORTED = (
    *("ltcore.progress.console", "ltcore.training.execute", "sklearn.datasets", "torch._dynamo"),
    *("ltcore_cifar_resnet.network", "ltcore_focal.method", "ltcore_ofa.method", "ltcore_tau_norm.method"),
)


class HalfFile:
    """A file opened for writing that takes half of what is written, and kills the process."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        die()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(target, when, number, mentioning=""):
    """Arm a function, ``module:name``: its call `number` with an argument that mentions a text is the last."""
    module, name = target.split(":")
    owner, seen = import_module(module), 0
    if "." in name:
        owner, name = getattr(owner, name.split(".")[0]), name.split(".")[1]
    real = getattr(owner, name, None) or getattr(builtins, name)

    def armed(*args, **kwargs):
        nonlocal seen
        meant = not mentioning or any(mentioning in str(argument) for argument in args)
        seen += meant
        last = seen == number and meant
        if last and when == "before":
            die()
        result = real(*args, **kwargs)
        if last and when == "after":
            die()
        return HalfFile(result) if last else result

    setattr(owner, name, armed)


def child(arguments, kill, log):
    from ltcore.cli import main

    signal.alarm(120)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    torch.set_num_threads(1)
    sys.argv = ["ltcore", *arguments]
    if kill:
        kill_at(*kill)
    code = 70
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve():
    """Fork a child for each line of standard input, and answer with its exit status."""
    # Nothing is computed in this process, since threads do not survive a fork.
    for module in IMPORTED:
        import_module(module)
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


# ---------------------------------------------------------------- the tests

RECIPE = """
name: r
data: {use: digits_lt}
backbone: {use: cifar_resnet, options: {depth: 8, width: 4}}
checkpoint_seconds: 0
methods: {focal: {}, ofa: {}, tau_norm: {}}
stages:
  - name: representation
    epochs: 3
    batch_size: 64
    methods: [focal]
    optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5.0e-4}
    schedule: {name: cosine, warmup_epochs: 1}
  - name: finetune
    iterations: 20
    batch_size: 32
    methods: [ofa]
    trainable: [classifier]
    cache: views:2
    optimizer: {name: sgd, lr: 0.01, momentum: 0.9}
calibrate: [tau_norm]
"""
# 389 images in batches of 64 are 7 steps an epoch, the last of them with 5 images, so checkpoint.save is called:
STEPS_ONE, STEPS_TWO = 21, 20
STAGE_FILE = STEPS_ONE + 1  # for the stage's file,
BOUNDARY = STAGE_FILE + 1  # for a checkpoint between the stages, and so on for stage two.
TWO = BOUNDARY + 1

SAVE, OPEN, LINE = (
    "ltcore.files.checkpoint:save",
    "ltcore.files.writing:opened",
    "ltcore.files.run_directory:RunDirectory.append_metrics",
)
MOMENTS = {
    "the directory has just got its name": ("ltcore.files.run_directory:RunDirectory.lock", "before", 1),
    "half of the first file is written": (OPEN, "half", 1, "environment.json"),
    "before the first checkpoint": (SAVE, "before", 1),
    "inside stage one": (SAVE, "after", 4),
    "after a forward pass of stage one": ("ltcore.training.step:StepForward.__call__", "after", 12),
    "half of a checkpoint is written": (OPEN, "half", 9, "last.safetensors"),
    "a checkpoint is written and not yet in place": ("os:replace", "before", 12, "last.safetensors"),
    "an epoch has ended, its line is not written": (LINE, "before", 2),
    "half of an epoch's line is written": ("ltcore.files.writing:opened_at_end", "half", 2, "metrics.jsonl"),
    "an epoch's line is written": (LINE, "after", 2),
    "half of stage one's file is written": (OPEN, "half", 1, "stage-0"),
    "stage one's file is written, the run still stands in it": (SAVE, "after", STAGE_FILE),
    "between the stages": (SAVE, "after", BOUNDARY),
    "inside on_stage_start of stage two": ("ltcore_ofa.method:most_confusing", "after", 1),
    "features are cached for stage two": ("ltcore.training.stage:FeatureCache.__init__", "after", 1),
    "half of stage two's first checkpoint is written": (OPEN, "half", TWO, "last.safetensors"),
    "inside stage two": (SAVE, "after", TWO + 15),
    "stage two is evaluated": (SAVE, "before", TWO + STEPS_TWO),
    "every stage has ended": ("ltcore.training.run:write_result", "before", 1),
    "the predictions are written and not yet in place": ("numpy:savez_compressed", "after", 1),
    "half of the result is written": (OPEN, "half", 1, "result.json"),
    "the result is written and not yet in place": ("os:replace", "before", 1, "result.json"),
}


@pytest.fixture(scope="module")
def run():
    """``run(folder, *arguments, kill=moment)`` is ``ltcore run FOLDER/r.yaml --out FOLDER/out`` in its own process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", __file__]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server,
        closing(server.stdin),
    ):
        assert server.stdout.readline() == "ready\n"

        def run(folder, *arguments, kill=None, recipe=RECIPE):
            (folder / "r.yaml").write_text(recipe)
            command = ["run", str(folder / "r.yaml"), "--out", str(folder / "out"), *arguments]
            request = {"arguments": command, "kill": kill, "log": str(folder / "log")}
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        yield run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """``whole(*arguments)`` is what a run that nobody kills leaves behind."""
    known = {}

    def whole(*arguments, recipe=RECIPE):
        key = (recipe, *arguments)
        if key not in known:
            folder = tmp_path_factory.mktemp("whole")
            assert run(folder, *arguments, recipe=recipe) == 0, (folder / "log").read_text()
            known[key] = outcome(folder / "out")
        return known[key]

    return whole


def without_times(found):
    """The same without what a clock says."""
    if isinstance(found, list):
        return [without_times(item) for item in found]
    if isinstance(found, dict):
        return {k: without_times(v) for k, v in found.items() if k not in ("seconds", "images_per_second")}
    return found


def outcome(out):
    """Everything that must be equal: JSON keeps every bit of a float, and the rest is bytes."""
    (path,) = (path for path in (out / "r").iterdir() if not path.name.startswith("."))
    with np.load(path / "predictions.npz") as arrays:
        predictions = {name: (arrays[name].shape, arrays[name].tobytes()) for name in arrays}
    return {
        "result": without_times(json.loads((path / "result.json").read_text())),
        "predictions": predictions,
        "metrics": [without_times(json.loads(line)) for line in (path / "metrics.jsonl").read_text().splitlines()],
        "stages": {file.name: file.read_bytes() for file in path.glob("checkpoints/stage-*")},
    }


def test_an_outcome_is_worth_comparing(whole):
    found = whole()
    assert [line["epoch"] for line in found["metrics"]] == [0, 1, 2, 0, 1]
    assert set(found["stages"]) == {"stage-0-representation.safetensors", "stage-1-finetune.safetensors"}
    before, after = found["result"]["before_calibration"], found["result"]["after_calibration"]
    assert before["ece"] != after["ece"] and len(before["per_class_accuracy"]) == 10


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_once(moment, run, whole, tmp_path):
    assert run(tmp_path, kill=MOMENTS[moment]) == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not list(tmp_path.glob("out/r/*/result.json"))
    assert run(tmp_path, "--resume") == 0, (tmp_path / "log").read_text()
    assert outcome(tmp_path / "out") == whole()


def test_killed_before_the_directory_has_its_name_there_is_nothing_to_go_on_with(run, whole, tmp_path):
    assert run(tmp_path, kill=("pathlib:Path.rename", "before", 1)) == -signal.SIGKILL
    assert run(tmp_path, "--resume") == 2
    assert "start it without --resume" in (tmp_path / "log").read_text()
    assert run(tmp_path) == 0
    assert outcome(tmp_path / "out") == whole()


def test_killed_again_and_again(run, whole, tmp_path):
    for number, kill in enumerate([(SAVE, "after", 5), (OPEN, "half", 6), (SAVE, "after", 12), (SAVE, "before", 12)]):
        assert run(tmp_path, *["--resume"] * bool(number), kill=kill) == -signal.SIGKILL
    assert run(tmp_path, "--resume") == 0
    assert outcome(tmp_path / "out") == whole()


@pytest.mark.parametrize(
    "kill", [MOMENTS["after a forward pass of stage one"], ("ltcore.training.step:set_learning_rate", "before", 30)]
)
def test_checkpoints_that_are_hours_apart(kill, run, whole, tmp_path):
    arguments = ("--set", "checkpoint_seconds=3600")
    assert run(tmp_path, *arguments, kill=kill) == -signal.SIGKILL
    assert run(tmp_path, *arguments, "--resume") == 0
    assert "going on from stage 2, epoch 1, step 1" in (tmp_path / "log").read_text() or kill[2] == 12
    assert outcome(tmp_path / "out") == whole(*arguments) == whole()


@pytest.mark.parametrize("optimizer", ["adam, lr: 0.01", "adamw, lr: 0.01"])
def test_optimizers_with_more_to_remember(optimizer, run, whole, tmp_path):
    # 389 images in batches of 55 leave 4 for the last one.
    recipe = RECIPE.replace("batch_size: 64", "batch_size: 55, clip_grad_norm: 1.0".replace(", ", "\n    "))
    recipe = recipe.replace("sgd, lr: 0.1, momentum: 0.9", optimizer).replace("sgd, lr: 0.01, momentum: 0.9", optimizer)
    assert run(tmp_path, recipe=recipe, kill=(SAVE, "after", 12)) == -signal.SIGKILL
    assert run(tmp_path, "--resume", recipe=recipe, kill=(SAVE, "after", 26)) == -signal.SIGKILL
    assert run(tmp_path, "--resume", recipe=recipe) == 0, (tmp_path / "log").read_text()
    assert outcome(tmp_path / "out") == whole(recipe=recipe)


def test_a_finished_run_is_shown_and_left_alone(run, tmp_path):
    assert run(tmp_path) == 0
    table = (tmp_path / "log").read_text().split("percent")[1]
    before = {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in tmp_path.rglob("out/**/*")
    }
    assert run(tmp_path, "--resume") == 0
    assert "has already ended" in (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().split("percent")[1] == table
    after = {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in tmp_path.rglob("out/**/*")
    }
    assert after == before


def test_another_recipe_is_not_resumed(run, tmp_path):
    assert run(tmp_path, kill=MOMENTS["inside stage one"]) == -signal.SIGKILL
    for change in ("--set=stages.finetune.iterations=21", "--seed=1"):
        assert run(tmp_path, "--resume", change) == 2
        log = (tmp_path / "log").read_text()
        assert log.startswith("--resume: no run of this recipe in ") and "1 there differ in a setting" in log


def test_two_processes_on_one_run(run, tmp_path):
    assert run(tmp_path, kill=MOMENTS["inside stage one"]) == -signal.SIGKILL
    (path,) = tmp_path.glob("out/r/*")
    with RunDirectory(path).lock():
        assert run(tmp_path, "--resume") == 1
        assert "another process is working on this run" in (tmp_path / "log").read_text()
    assert run(tmp_path, "--resume") == 0


def test_a_damaged_checkpoint_is_named(run, tmp_path):
    assert run(tmp_path, kill=MOMENTS["inside stage two"]) == -signal.SIGKILL
    for file in ("last", "stage-0-representation"):
        (path,) = tmp_path.glob(f"out/r/*/checkpoints/{file}.safetensors")
        whole = path.read_bytes()
        path.write_bytes(whole[:1000])
        assert run(tmp_path, "--resume") == 1
        log = (tmp_path / "log").read_text()
        assert f"{path}: not a readable checkpoint" in log and "Traceback" not in log
        path.write_bytes(whole)


if __name__ == "__main__":
    serve()
