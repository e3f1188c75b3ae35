"""A run that is killed, by a real SIGKILL, goes on with --resume to the very figures of one that was not.

Starting Python with torch takes seconds, so one process imports both and forks a child for every run. In the child a
chosen call of a chosen function kills it: the moments are exact, and nothing here sleeps.
"""

import atexit
import builtins
import json
import os
import shlex
import signal
import subprocess
import sys
from contextlib import closing
from importlib import import_module

import numpy as np
import pytest
import torch

from ltcore.files.run_directory import RunDirectory
from ltcore.training.execute import _begun

# ---------------------------------------------------------------- the process that forks

#: All that a run imports.
IMPORTED = (
    *("ltcore.progress.console", "ltcore.training.execute", "sklearn.datasets"),
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


def die(number=signal.SIGKILL):
    """Send a signal to the process and to all that it has started, as Slurm and terminals do."""
    sender, pipe = SENDER
    os.write(pipe, bytes([number]))
    os.waitpid(sender, 0)


#: The process that sends signals, since one's own are something else to those whom one has started; and a pipe to it.
SENDER = []


def make_sender():
    """Start the process that sends a signal to its group once it is told which."""
    reading, writing = os.pipe()
    sender = os.fork()
    if sender == 0:
        os.close(writing)
        if number := os.read(reading, 1):
            if number[0] != signal.SIGKILL:
                signal.signal(number[0], signal.SIG_IGN)
            os.killpg(os.getpgrp(), number[0])
        os._exit(0)
    SENDER[:] = sender, writing


def kill_at(target, when, number, mentioning="", sent=signal.SIGKILL):
    """Arm a function, ``module:name``: at its call `number` with an argument that mentions a text, a signal is sent."""
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
            die(sent)
        result = real(*args, **kwargs)
        if last and when == "after":
            die(sent)
        return HalfFile(result) if last and when == "half" else result

    setattr(owner, name, armed)


def child(arguments, kill, log, ignored=()):
    from ltcore.cli import main

    signal.alarm(300)
    os.setpgrp()
    make_sender()
    # As in a terminal, whatever the process ignores that started the tests (nohup, a shell's background).
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
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
        atexit._run_exitfuncs()  # as Python does at its end: processes that decode are ended
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
BOUNDARY = STAGE_FILE + 2  # twice for a checkpoint between the stages, and so on for stage two.
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
    "the first of two checkpoints between the stages is written": (SAVE, "after", BOUNDARY - 1),
    "the last checkpoint has got a second name": ("os:link", "after", 6),
    "the last checkpoint is kept under the other name": ("pathlib:Path.replace", "after", 6),
    "between the stages": (SAVE, "after", BOUNDARY),
    "inside on_stage_start of stage two": ("ltcore_ofa.method:most_confusing", "after", 1),
    "features are cached for stage two": ("ltcore.training.stage:FeatureCache.__init__", "after", 1),
    "half of stage two's first checkpoint is written": (OPEN, "half", TWO, "last.safetensors"),
    "inside stage two": (SAVE, "after", TWO + 15),
    "stage two is evaluated": (SAVE, "before", TWO + STEPS_TWO),
    "every stage has ended": ("ltcore.training.run:write_result", "before", 1),
    "the predictions are written and not yet in place": ("numpy:savez", "after", 1),
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

        def run(folder, *arguments, kill=None, recipe=RECIPE, command=None, ignored=()):
            (folder / "r.yaml").write_text(recipe)
            command = command or ["run", str(folder / "r.yaml"), "--out", str(folder / "out"), *arguments]
            request = {"arguments": command, "kill": kill, "log": str(folder / "log"), "ignored": ignored}
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


@pytest.mark.sampled(5)
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


@pytest.mark.slow
def test_killed_again_and_again(run, whole, tmp_path):
    for number, kill in enumerate([(SAVE, "after", 5), (OPEN, "half", 6), (SAVE, "after", 12), (SAVE, "before", 12)]):
        assert run(tmp_path, *["--resume"] * bool(number), kill=kill) == -signal.SIGKILL
    assert run(tmp_path, "--resume") == 0
    assert outcome(tmp_path / "out") == whole()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "kill", [MOMENTS["after a forward pass of stage one"], ("ltcore.training.step:set_learning_rate", "before", 30)]
)
def test_checkpoints_that_are_hours_apart(kill, run, whole, tmp_path):
    arguments = ("--set", "checkpoint_seconds=3600")
    assert run(tmp_path, *arguments, kill=kill) == -signal.SIGKILL
    assert run(tmp_path, *arguments, "--resume") == 0
    assert "going on from stage 2, epoch 1, step 1" in (tmp_path / "log").read_text() or kill[2] == 12
    assert outcome(tmp_path / "out") == whole(*arguments) == whole()


@pytest.mark.parametrize("optimizer", [pytest.param("adam, lr: 0.01", marks=pytest.mark.slow), "adamw, lr: 0.01"])
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


def flipped(path):
    """The file's content with one bit of its last byte turned: a tensor's value, or the header's end."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    return bytes(content)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("damage", [lambda path: path.read_bytes()[:1000], flipped], ids=["cut off", "a bit"])
def test_when_the_last_checkpoint_is_damaged_the_one_before_it_is_used(damage, run, whole, tmp_path):
    assert run(tmp_path, kill=MOMENTS["inside stage two"]) == -signal.SIGKILL
    (last,) = tmp_path.glob("out/r/*/checkpoints/last.safetensors")
    last.write_bytes(damage(last))
    assert run(tmp_path, "--resume", kill=(SAVE, "after", 3)) == -signal.SIGKILL
    log = (tmp_path / "log").read_text()
    assert f"warning: {last}: not a readable checkpoint (" in log and "without --resume" not in log
    assert "going on from previous.safetensors instead" in log and "going on from stage 2, epoch 2, step 3" in log
    last.unlink()  # as a careless hand does it; what is damaged has not taken the place of the one before it
    assert run(tmp_path, "--resume") == 0
    assert f"warning: {last} is missing; going on from previous.safetensors" in (tmp_path / "log").read_text()
    assert outcome(tmp_path / "out") == whole()


def test_when_both_are_damaged_the_stages_end_is_used(run, whole, tmp_path):
    assert run(tmp_path, kill=MOMENTS["inside stage two"]) == -signal.SIGKILL
    for name in ("last", "previous"):
        (path,) = tmp_path.glob(f"out/r/*/checkpoints/{name}.safetensors")
        path.write_bytes(flipped(path))
    assert run(tmp_path, "--resume") == 0
    log = (tmp_path / "log").read_text()
    assert log.count("the digest is another") == 2
    assert "going on from boundary-0.safetensors instead" in log and "going on from stage 2, epoch 1, step 1" in log
    assert outcome(tmp_path / "out") == whole()


def test_when_a_stages_file_is_damaged_what_needs_it_is_left_out(run, whole, tmp_path):
    # The checkpoint before the boundary lies inside stage one, so the stage's end is trained once more.
    assert run(tmp_path, kill=MOMENTS["between the stages"]) == -signal.SIGKILL
    (path,) = tmp_path.glob("out/r/*/checkpoints/stage-0-representation.safetensors")
    path.write_bytes(flipped(path))
    assert run(tmp_path, "--resume") == 0
    log = (tmp_path / "log").read_text()
    assert f"warning: {path}: not a readable checkpoint (" in log and "going on from stage 1, epoch 3, step 8" in log
    assert outcome(tmp_path / "out") == whole()


def test_when_nothing_can_be_used_one_message_says_so(run, tmp_path):
    assert run(tmp_path, kill=MOMENTS["inside stage two"]) == -signal.SIGKILL
    (path,) = tmp_path.glob("out/r/*/checkpoints/stage-0-representation.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    assert run(tmp_path, "--resume") == 1
    log = (tmp_path / "log").read_text()
    assert f"{path}: not a readable checkpoint" in log and "Begin the run anew, without --resume" in log
    assert "None of the 3 checkpoints of the run can be used" in log and "Traceback" not in log
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


# ---------------------------------------------------------------- signals

FORWARD = "ltcore.training.step:StepForward.__call__"
FAR_APART = ("--set", "checkpoint_seconds=3600")


def to_go_on(log):
    """The command that the last line names."""
    line = log.read_text().splitlines()[-1]
    assert "Traceback" not in log.read_text()
    return line, shlex.split(line.partition("; to go on: ")[2])


@pytest.mark.parametrize(
    "sent",
    [
        signal.SIGTERM,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)),
    ],
    ids=lambda sent: sent.name,
)
def test_a_signal_ends_the_step_writes_a_checkpoint_and_says_how_to_go_on(sent, run, whole, tmp_path):
    assert run(tmp_path, *FAR_APART, kill=(FORWARD, "before", 12, "", sent)) == 143
    line, (program, *command) = to_go_on(tmp_path / "log")
    said = f"stopped by {sent.name} in stage 'representation' after epoch 2, step 5, and a checkpoint is written; to go"
    assert line.startswith(said) and program == "ltcore"
    assert command == ["run", f"{tmp_path}/r.yaml", "--out", f"{tmp_path}/out", *FAR_APART, "--resume"]
    assert run(tmp_path, command=command) == 0
    assert "going on from stage 1, epoch 2, step 6" in (tmp_path / "log").read_text()
    assert outcome(tmp_path / "out") == whole()


def test_a_key_ends_it_at_once_and_says_how_to_go_on(run, whole, tmp_path):
    assert run(tmp_path, "--seed", "3", kill=(FORWARD, "before", 12, "", signal.SIGINT)) == 130
    line, (_, *command) = to_go_on(tmp_path / "log")
    assert line.startswith("stopped; to go on: ltcore run ") and "--seed 3 --resume" in line
    assert run(tmp_path, command=command) == 0
    assert outcome(tmp_path / "out") == whole("--seed", "3")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("moment", "said"),
    [
        (("ltcore.training.evaluation:Evaluation.figures", "before", 1), "stopped by SIGTERM; to go on"),
        (("ltcore.training.stage:FeatureCache.__init__", "after", 1), "stopped by SIGTERM; to go on"),
        (("ltcore.training.observers:Progress.epoch_ended", "after", 3), "at the end of stage 'representation'"),
        (("ltcore.training.run:write_result", "before", 1), "stopped by SIGTERM; to go on"),
    ],
)
def test_a_signal_between_the_steps(moment, said, run, whole, tmp_path):
    assert run(tmp_path, kill=(*moment, "", signal.SIGTERM)) == 143
    line, (_, *command) = to_go_on(tmp_path / "log")
    assert said in line
    assert run(tmp_path, command=command) == 0
    assert outcome(tmp_path / "out") == whole()


def test_a_signal_before_there_is_a_run(run, tmp_path):
    assert run(tmp_path, kill=("ltcore.training.execute:read_splits", "before", 1, "", signal.SIGTERM)) == 143
    assert (tmp_path / "log").read_text() == "stopped by SIGTERM; nothing was begun\n"
    assert not (tmp_path / "out").exists()


def test_a_hangup_that_is_ignored_stays_so(run, whole, tmp_path):
    kill = (FORWARD, "before", 12, "", signal.SIGHUP)
    assert run(tmp_path, kill=kill, ignored=[signal.SIGHUP]) == 0
    assert outcome(tmp_path / "out") == whole()


STREAMED = RECIPE.replace("{use: digits_lt}", "{use: digits_lt, workers: 2, transform: {name: resize_crop}}")


def test_workers_leave_a_signal_to_the_trainer(run, whole, tmp_path):
    recipe = STREAMED.replace("views:2", "eval")
    assert run(tmp_path, *FAR_APART, recipe=recipe, kill=(FORWARD, "before", 12, "", signal.SIGTERM)) == 143
    line, (_, *command) = to_go_on(tmp_path / "log")
    assert "after epoch 2, step 5, and a checkpoint is written" in line
    assert run(tmp_path, recipe=recipe, command=command) == 0
    assert outcome(tmp_path / "out") == whole(recipe=recipe)


def test_resume_alone_finds_the_latest_run_that_has_not_ended(run, whole, tmp_path):
    bare = ["run", "--resume", "--out", str(tmp_path / "out")]
    assert run(tmp_path, command=bare) == 2
    assert "every run in " in (tmp_path / "log").read_text()
    assert run(tmp_path, kill=MOMENTS["inside stage one"]) == -signal.SIGKILL
    (path,) = tmp_path.glob("out/r/*")
    assert run(tmp_path, command=bare, kill=(FORWARD, "before", 3, "", signal.SIGTERM)) == 143
    log = (tmp_path / "log").read_text()
    assert log.startswith(f"going on with {path}, the latest run in {tmp_path}/out that has not ended\n")
    _, (_, *command) = to_go_on(tmp_path / "log")
    assert command == ["run", f"{path}/recipe.yaml", "--out", f"{tmp_path}/out", "--resume"]
    assert run(tmp_path, command=command) == 0
    assert outcome(tmp_path / "out") == whole()
    assert run(tmp_path, command=bare) == 2
    assert run(tmp_path, command=["run", "--resume", "--seed", "1"]) == 2
    assert "name a RECIPE" in (tmp_path / "log").read_text()


if __name__ == "__main__":
    serve()


def test_what_torchrun_starts_again_goes_on_by_itself_where_it_can(tmp_path, monkeypatch):
    def begun():
        return _begun(tmp_path, "r", "seed: 0\n", resume=False)

    run = RunDirectory.create(tmp_path, "r", 0, "seed: 0\n")
    assert begun() is None, "whoever starts a run anew gets a new one"
    monkeypatch.setattr("ltcore.ranks.restarted", lambda: True)
    assert begun().path == run.path
    (run.path / "result.json").write_text("{}")
    assert begun() is None
    assert _begun(tmp_path, "other", "seed: 0\n", resume=False) is None
