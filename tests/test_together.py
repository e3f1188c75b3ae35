"""Several processes that train one model against one process with the same total batch."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ltcore import ranks
from ltcore.errors import PluginError, RecipeError, RunError
from ltcore.networks.synchronised import synchronise

ROOT = Path(__file__).parents[1]
PROGRAM = Path(__file__).with_name("together_program.py")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environments(number):
    """The variables that torchrun gives each of so many processes."""
    port = str(free_port())
    for rank in range(number):
        yield os.environ | {
            **{"RANK": str(rank), "WORLD_SIZE": str(number), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(number)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
        }


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Runs jobs of `together_program` in so many processes, or in this one; the answers of each."""

    def ask(number, jobs):
        if number == 1:
            monkeypatch.chdir(ROOT)
            runpy.run_path(str(PROGRAM))["main"](tmp_path, jobs)
            return [json.loads((tmp_path / "1-0.json").read_text())]
        processes = [
            subprocess.Popen([sys.executable, PROGRAM, tmp_path], stdin=subprocess.PIPE, env=environment, cwd=ROOT)
            for environment in environments(number)
        ]
        for process in processes:
            process.stdin.write(json.dumps(jobs).encode())
            process.stdin.close()
        assert [process.wait(300) for process in processes] == [0] * number
        return [json.loads((tmp_path / f"{number}-{rank}.json").read_text()) for rank in range(number)]

    return ask


def near(found, expected, by=1e-12):
    if isinstance(expected, list) and any(isinstance(each, list) for each in expected):
        assert len(found) == len(expected)
        for mine, theirs in zip(found, expected, strict=True):
            near(mine, theirs, by)
    else:
        assert torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=by, atol=by)


def compare(one, several):
    """The same steps, images and figures; losses within 1e-5."""
    first, *others = several
    assert all(other["steps"] == first["steps"] and other["figures"] == first["figures"] for other in others)
    assert [step[0] for step in one["steps"]] == [step[0] for step in first["steps"]]
    assert [step[2] for step in one["steps"]] == [step[2] for step in first["steps"]], "the same images"
    for (stage, losses, _), (_, found, _) in zip(one["steps"], first["steps"], strict=True):
        assert losses.keys() == found.keys()
        for name, value in losses.items():
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (stage, name)
    assert one["files"] == first["files"], "one process has written"
    assert one["figures"] == pytest.approx(first["figures"], abs=0.021), "two of a hundred images at most"


SMALL = ("threads=1", "diagnostics=off", "sync_batch_norm=true", "stages.representation.optimizer.lr=0.001")
#: Recipes with what makes their methods act at once, in few steps.
RECIPES = {
    "ce": ["stages.representation.epochs=2"],
    "ldam_drw": ["stages.representation.epochs=1", "methods.drw.options.start_epoch=0"],
    "ofa": ["stages.representation.epochs=1", "stages.finetune.iterations=3"],
    "safa": [
        *("stages.representation.epochs=1", "methods.drw.options.start_epoch=0", "methods.safa.options.start_epoch=0"),
    ],
    "stg": [
        "stages.representation.epochs=1",
        *("stages.generator.iterations=3", "stages.classifier.iterations=3", "stages.classifier.optimizer.lr=0.0001"),
    ],
    "glag": ["stages.representation.epochs=1", "stages.classifier.epochs=1"],
    "ride": [
        "stages.representation.epochs=1",
        *("methods.drw.options.start_epoch=0", "methods.ride.options.temperature_epoch=0"),
    ],
    "bcl": ["stages.representation.epochs=1"],
    "sam": ["stages.representation.epochs=1"],
}


def job(name):
    return [f"recipes/digits_lt_{name}.yaml", [*SMALL, *RECIPES[name]]]


@pytest.mark.parametrize(
    "name", ["ldam_drw", *(pytest.param(name, marks=pytest.mark.slow) for name in RECIPES if name != "ldam_drw")]
)
def test_two_processes_train_as_one_does(answers, name):
    """Losses of the first steps; every stage's last batch is smaller than the others, and odd."""
    jobs = {"units": "units", "parts": "parts", name: job(name)}
    (one,), two = answers(1, jobs), answers(2, jobs)
    compare(one[name], [answer[name] for answer in two])
    for answer in two:  # batches that each process takes in parts
        near(answer["parts"]["losses"], one["parts"]["losses"], 1e-6)
        near(answer["parts"]["buffers"], one["parts"]["buffers"], 1e-6)
        for ours, theirs in zip(answer["parts"]["gradients"], one["parts"]["gradients"], strict=True):
            assert (ours is None) == (theirs is None)
            near(ours or [], theirs or [], 1e-6)
    for answer in two:  # the exchange, in float64
        found, expected = answer["units"], one["units"]
        for key in ("rows", "input", "mean", "variance", "experts", "few", "shares", "one share"):
            near(found[key], expected[key])
        for ours, theirs in zip(found["gradients"], expected["gradients"], strict=True):
            near(ours, theirs)
        assert (found["summed"], found["first"], found["number"]) == ([2.0], [0.0, 0.0], [0])
        assert (found["told"], found["any"], found["none"]) == ({"rank": 0}, True, False)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["eval", "views:2"])
def test_cached_features_in_a_file_are_those_of_all_processes(answers, tmp_path, cache):
    """The first process writes, all look at the file; nothing else differs from features in memory."""
    recipe, sets = job("ofa")
    sets = [*sets, f"stages.finetune.cache={cache}", "eval_batch_size=50"]
    (one,), two = answers(1, {"a": [recipe, sets]}), answers(2, {"a": [recipe, sets, True], "b": [recipe, sets]})
    compare(one["a"], [answer["a"] for answer in two])
    for answer in two:
        assert (answer["a"]["steps"], answer["a"]["figures"]) == (answer["b"]["steps"], answer["b"]["figures"])
    assert len(list(tmp_path.glob("runs-2/a/features/*.features"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            "data={use: synthetic, options: {class_counts: [9, 9, 9, 9, 9, 9, 9, 9, 9, 9], image_size: 8}}",
            "recipe and another data set",
        ),
        ("seed=1", "recipe"),
    ],
    ids=["data", "seed"],
)
def test_processes_that_would_train_something_else_are_refused(tmp_path, change, what):
    """As on two machines whose files differ; else the result would be of neither, and look well."""
    command = [sys.executable, "-m", "ltcore", "run", "recipes/digits_lt_ce.yaml", "--out", tmp_path]
    processes = [
        subprocess.Popen([*command, *more], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for environment, more in zip(environments(2), ([], ["--set", change]), strict=True)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], said
    # torchrun keeps the place where they agree on who speaks; here it may end with the first process.
    assert "".join(said).count(f"process 2 of 2 has another {what} than the first one") in (1, 2), said
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.slow
def test_three_processes_without_synchronised_statistics(answers, tmp_path):
    """Each normalises its own rows, so losses differ; the processes stay alike, and see the same images."""
    recipe = job("ldam_drw")
    recipe[1].remove("sync_batch_norm=true")
    (one,), three = answers(1, {"a": recipe}), answers(3, {"a": recipe})
    first, *others = (answer["a"] for answer in three)
    assert all(other["steps"] == first["steps"] and other["figures"] == first["figures"] for other in others)
    assert [step[2] for step in one["a"]["steps"]] == [step[2] for step in first["steps"]]
    assert one["a"]["steps"][-1][1] != first["steps"][-1][1]


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "size"), [(7, 2), (8, 2), (9, 4), (4, 4), (100, 7)])
def test_every_row_is_one_processs(rows, size):
    parts = [range(rows)[ranks._part(rows, rank, size)] for rank in range(size)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_shared():
    assert (ranks.rank(), ranks.size(), ranks.leading(), ranks.part(5)) == (0, 1, True, slice(0, 5))
    tensor = torch.ones(2)
    assert ranks.joined(tensor, 2) is tensor and ranks.summed(tensor) is tensor
    assert ranks.told("x") == "x" and ranks.any_of(True) and not ranks.any_of(False)
    with ranks.together("cpu"), ranks.first():
        assert ranks.size() == 1


TWO = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "x",
    "MASTER_PORT": "1",
}


def test_how_a_process_was_started():
    assert ranks.started(TWO) == ranks.Started(1, 2, 1, 2)
    assert ranks.started({}) == ranks.started(TWO | {"WORLD_SIZE": "1"}) == ranks.Started()
    assert ranks.started({"WORLD_SIZE": "4", "RANK": "2"}) == ranks.Started(), "no torchrun has said so"
    for wrong in ({"RANK": "2"}, {"RANK": "x"}, {"LOCAL_RANK": "3"}, {"RANK": "-1"}):
        with pytest.raises(RecipeError, match="cannot be right: RANK="):
            ranks.started(TWO | wrong)
    assert not ranks.restarted(TWO) and not ranks.restarted(TWO | {"TORCHELASTIC_RESTART_COUNT": "0"})
    assert ranks.restarted(TWO | {"TORCHELASTIC_RESTART_COUNT": "1"})
    assert not ranks.restarted({"TORCHELASTIC_RESTART_COUNT": "1"})


def test_other_commands_do_not_run_many_times(cli, monkeypatch):
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ltcore.ranks.speaks", lambda message: True)
    found = cli("plugins")
    found.is_one_message(2, "several processes train together with torchrun -m ltcore run")


def test_batch_norm_of_an_unknown_kind_is_refused():
    class Own(torch.nn.BatchNorm2d):
        pass

    with pytest.raises(RecipeError, match="sync_batch_norm: 1 of the backbone is a Own"):
        synchronise(torch.nn.Sequential(torch.nn.BatchNorm2d(2), Own(2)))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_synchronised_batch_norm_alone_is_batch_norm(momentum):
    plain = torch.nn.BatchNorm1d(3, momentum=momentum).double()
    ours = torch.nn.Sequential(torch.nn.BatchNorm1d(3, momentum=momentum).double())
    synchronise(ours)
    synchronise(ours)  # once more changes nothing
    for _ in range(2):
        rows = torch.randn(5, 3, dtype=torch.float64)
        torch.testing.assert_close(ours(rows), plain(rows))
    assert ours[0].state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours[0].state_dict()[name], value)
    torch.testing.assert_close(ours.eval()(rows), plain.eval()(rows))


def test_what_pytorch_says_of_lost_processes_is_one_message(monkeypatch):
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match="process 2 of 2 has lost the others") as found, ranks._one_message():
        raise RuntimeError("[/src/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1\nmore")
    assert "more" not in str(found.value) and "--resume" in str(found.value)
    with pytest.raises(RunError, match="port 1 of x is in use"), ranks._one_message():
        raise torch.distributed.DistNetworkError("The server socket has failed to listen: EADDRINUSE")
    with pytest.raises(RuntimeError, match="of another kind"), ranks._one_message():
        raise RuntimeError("of another kind")
    with pytest.raises(PluginError), ranks._one_message():
        raise PluginError("a peer of mine")


# -- torchrun ----------------------------------------------------------------------------------------------------------

LONG = tuple(
    word
    for change in (
        *("stages.representation.epochs=3", "stages.representation.schedule.warmup_epochs=0"),
        *("methods.drw.options.start_epoch=1", "checkpoint_seconds=0", "diagnostics=off"),
    )
    for word in ("--set", change)
)


def torchrun(*words, restarts=0, number=2):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={number}", "--standalone"]
    command += [
        f"--max-restarts={restarts}",
        "-m",
        "ltcore",
        "run",
        "recipes/digits_lt_ldam_drw.yaml",
        *map(str, words),
    ]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def workers(process):
    """The processes that torchrun has started, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid:
                variables = dict(
                    each.split("=", 1) for each in (path / "environ").read_text().split("\0") if "=" in each
                )
                found[int(variables["RANK"])] = int(path.name)
        except (OSError, KeyError, ValueError):
            continue
    return found


def wait_for(process, out):
    """Until a checkpoint is there."""
    until = time.monotonic() + 120
    while not list(out.glob("*/*/checkpoints/last.safetensors")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0].decode()[-2000:]
        time.sleep(0.05)


def result_of(out):
    (path,) = out.glob("*/[!.]*")
    found = json.loads((path / "result.json").read_text())
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return found["after_calibration"], [line["loss"] for line in metrics], path


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_worker_is_started_again_and_nothing_differs(tmp_path, killed):
    whole = torchrun(*LONG, "--out", tmp_path / "whole")
    said, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, said.decode()[-2000:]
    process = torchrun(*LONG, "--out", tmp_path / "killed", restarts=1)
    wait_for(process, tmp_path / "killed")
    os.kill(workers(process)[killed], signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()[-3000:]
    assert result_of(tmp_path / "killed")[:2] == result_of(tmp_path / "whole")[:2]
    environment = json.loads((result_of(tmp_path / "killed")[2] / "environment.json").read_text())
    assert [entry["processes"] for entry in environment] == [2]


@pytest.mark.slow
def test_a_signal_to_torchrun_ends_all_in_good_order(tmp_path):
    whole = torchrun(*LONG, "--out", tmp_path / "whole")
    assert whole.wait(300) == 0
    process = torchrun(*LONG, "--out", tmp_path / "stopped")
    wait_for(process, tmp_path / "stopped")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0].decode()
    assert process.returncode != 0 and said.count("a checkpoint is written") == 1, said
    again = torchrun(*LONG, "--out", tmp_path / "stopped", "--resume")
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said.decode()[-2000:]
    assert result_of(tmp_path / "stopped")[:2] == result_of(tmp_path / "whole")[:2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "stages.representation.batch_size=1"), "a batch of 1 images cannot be shared by 2 processes"),
        (("--set", "stages.representation.lr=1"), "unknown key"),
        (("--set", "data.options.nothing=1"), "unknown option"),
        (("--set", "device=cuda"), "this machine has no CUDA device"),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path, words, message):
    process = torchrun(*words, "--out", tmp_path)
    said = process.communicate(timeout=120)[0].decode()
    assert process.returncode != 0 and said.count(message) == 1 and "ltcore failed" not in said, said


@pytest.mark.slow
def test_a_locked_run_and_a_port_in_use_are_said_once(tmp_path):
    longer = (*LONG, "--set", "stages.representation.epochs=2000", "--out", tmp_path)
    process = torchrun(*longer)
    wait_for(process, tmp_path)
    second = torchrun(*longer, "--resume")
    said = second.communicate(timeout=120)[0].decode()
    assert second.returncode != 0 and said.count("another process is working on this run") == 1, said
    process.terminate()  # which ends what it has started, too
    process.wait(120)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = next(environments(2)) | {"MASTER_PORT": str(taken.getsockname()[1])}
        command = [sys.executable, "-m", "ltcore", "run", "recipes/digits_lt_ce.yaml", "--out", tmp_path / "other"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "is in use, so the processes cannot meet" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.slow
def test_a_process_that_dies_at_its_start_ends_the_others(tmp_path):
    first, second = environments(2)
    command = [sys.executable, "-m", "ltcore", "run", "recipes/digits_lt_ce.yaml", "--out", tmp_path]
    one = subprocess.Popen(command, cwd=ROOT, env=first, stderr=subprocess.PIPE, text=True)
    other = "from ltcore import ranks\nimport os\nwith ranks.together('cpu'):\n    os._exit(9)"
    subprocess.run([sys.executable, "-c", other], cwd=ROOT, env=second, timeout=120)
    said = one.communicate(timeout=120)[1]
    assert one.returncode == 1 and "has lost the others" in said and "Traceback" not in said, said
