"""A search with Optuna on held-out images, and workers on a cluster's machines through submitit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ltcore.errors import RecipeError, RunError
from ltcore.recipe.loading import load_recipe
from ltcore.sweeps.folder import folders, write_job
from ltcore.sweeps.jobs import Job
from ltcore.sweeps.search import Axis, Search, axis_of, begin, text_of
from ltcore.sweeps.workers import Worker, executor, searching

FOCAL = {
    "methods": {"focal": {}},
    "stages": [{"name": "one", "epochs": 1, "methods": ["focal"], "optimizer": {"lr": 0.1}}],
}
GAMMA = "methods.focal.options.gamma=0.5..2.5"


def synthetic(test_per_class=4, **more):
    options = {"class_counts": [24, 16, 8, 6], "image_size": 8, "test_per_class": test_per_class, **more}
    return {"use": "synthetic", "options": options}


# -- what is typed -----------------------------------------------------------------------------------------------------


def test_axes():
    assert axis_of("a.b=0.1..0.5") == Axis("a.b", low=0.1, high=0.5)
    assert axis_of("a.b=1..5") == Axis("a.b", low=1, high=5) and axis_of("a=1..5").whole
    assert axis_of("a=log:1e-4..1e-1") == Axis("a", low=1e-4, high=0.1, log=True)
    assert axis_of("a=x,y,true") == Axis("a", ("x", "y", True)) and not axis_of("a=1..5.0").whole
    for text, message in [
        ("a=5..1", "a range begins with its lower end"),
        ("a=log:0..1", "a range begins with its lower end, above 0,"),
        ("a=x..y", "a range has a number at both ends"),
        ("a", "write PATH=VALUE"),
    ]:
        with pytest.raises(RecipeError, match=message):
            axis_of(text)


def test_mistakes_are_known_before_anything_is_tried(write_recipe, tmp_path):
    path = write_recipe(**FOCAL)
    for grid, sets, message in [
        ([], [], "say what to search with --grid"),
        (["methods.focl.options.gamma=0..1"], [], "the recipe has no method 'focl'"),
        (["seed=0..5"], [], "--grid seed: is no setting"),
        (["stages.one.epochs=0..5"], [], "should be greater than 0"),
        ([GAMMA], ["select={options: {stages.one.epochs: [1]}}"], "--search chooses values itself"),
    ]:
        with pytest.raises(RecipeError, match=message):
            begin(tmp_path / "s", load_recipe(path, sets), grid, 3, 1)
    begin(tmp_path / "s", load_recipe(path), [GAMMA], 3, 1)
    begin(tmp_path / "s", load_recipe(path), [GAMMA], 5, 1)
    assert Search(tmp_path / "s").trials == 5
    with pytest.raises(RecipeError, match="another search is there, with another grid and holdout"):
        begin(tmp_path / "s", load_recipe(path), [GAMMA.replace("2.5", "3")], 3, 2)


def test_a_search_has_one_seed(cli, write_recipe, tmp_path):
    words = ("sweep", write_recipe(**FOCAL), "--grid", GAMMA, "--search", 3, "--seeds", "0,1", "--out", tmp_path / "s")
    cli(*words).is_one_message(2, "--search: searches with one seed")
    assert not (tmp_path / "s").exists()


def test_without_optuna_or_submitit_the_extra_is_named(write_recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RecipeError, match=r"pip install 'ltcore\[hpo\]'"):
        begin(tmp_path / "s", load_recipe(write_recipe(**FOCAL)), [GAMMA], 3, 1)
    with pytest.raises(RecipeError, match=r"pip install 'ltcore\[slurm\]'"):
        executor("slurm", tmp_path, {})


# -- trials ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def search(tmp_path, write_recipe):
    pytest.importorskip("optuna")

    def make(name, trials=3, grid=(GAMMA,), **parts):
        begin(tmp_path / name, load_recipe(write_recipe(name, **{**FOCAL, **parts})), grid, trials, 1)
        return Search(tmp_path / name)

    return make


def test_test_images_are_not_there(search, tmp_path, monkeypatch):
    from ltcore.training.evaluation import Evaluation

    seen = []
    real = Evaluation.outputs
    monkeypatch.setattr(Evaluation, "outputs", lambda self, split: seen.append(split) or real(self, split))
    one, other = search("one", data=synthetic(4)), search("other", data=synthetic(9, noise=0.2))
    rows = []
    for found in (one, other):
        found.work()
        rows.append(found.rows())
    assert set(seen) == {"val"}
    assert [row["state"] for row in rows[0]] == ["complete"] * 3 and all(0 <= row["score"] <= 1 for row in rows[0])
    # Another noise makes other training images; where only the test images differ, nothing does.
    again = search("again", data=synthetic(30))
    again.work()
    assert again.rows() == rows[0]
    assert not list(tmp_path.glob("*/search/**/predictions.npz"))


def test_the_best_becomes_a_recipe(search):
    found = search("s", trials=4)
    assert found.write_best() is None
    found.work()
    best = load_recipe(found.write_best())
    (gamma,) = found.rows()[0]["values"].values()
    assert best.recipe.methods["focal"].options == {"gamma": gamma} and 0.5 <= gamma <= 2.5
    assert best.recipe.data.holdout == 0, "it is trained on all images"
    scores = [row["score"] for row in found.rows()]
    assert scores == sorted(scores, reverse=True)
    assert text_of(found.rows()).startswith("4 trials (4 complete); balanced accuracy on held-out")
    values = [tuple(row["values"].values()) for row in found.rows()]
    assert len(set(values)) == 4


def test_a_trial_that_fails_is_named_and_the_others_go_on(search):
    found = search("s", trials=3, grid=["stages.one.optimizer.lr=1.0e+30,0.1"])
    found.work()
    failed = [row for row in found.rows() if row["state"] == "fail"]
    assert failed and len(found.rows()) == 3 and "not finite" in failed[0]["message"]
    assert f"trial {failed[0]['number']} failed: " in text_of(found.rows())


def test_what_is_worse_after_a_stage_is_given_up(search, monkeypatch):
    import optuna

    stages = [
        {"name": name, "epochs": 1, "methods": ["focal"], "optimizer": {"lr": 0.1}, "batch_size": 8}
        for name in ("one", "two")
    ]
    found = search("s", trials=2, stages=stages)
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: trial.number == 1)
    found.work()
    states = {row["number"]: row["state"] for row in found.rows()}
    assert states == {0: "complete", 1: "pruned"}
    first = found.study().get_trials()[0]
    assert list(first.intermediate_values) == [0], "told at the first stage's end"
    assert list((found.folder / "search" / "trial-1" / "checkpoints").glob("stage-*")) == [
        found.folder / "search" / "trial-1" / "checkpoints" / "stage-0-one.safetensors"
    ]


def test_a_trial_that_a_worker_has_left_is_gone_on_with(search):
    found = search("s", trials=2)
    study = found.study()
    left = study.ask()
    left.suggest_float("methods.focal.options.gamma", 0.5, 2.5)  # and then its worker was killed
    found.work()
    rows = {row["number"]: row for row in found.rows()}
    assert len(rows) == 2 and rows[0]["state"] == rows[1]["state"] == "complete"
    assert rows[0]["values"] == left.params


def test_a_search_waits_for_its_workers_and_one_that_ends_well_is_enough(tmp_path, monkeypatch):
    (tmp_path / "search").mkdir()
    program, log, looked = tmp_path / "python", tmp_path / "search" / "log.txt", []
    program.write_text("#!/bin/sh\nsleep 0.3\necho worked\nmkdir $3/well 2> /dev/null || exit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    searching(tmp_path, 2, 1, lambda: looked.append(len(log.read_text().split())))
    assert log.read_text() == "worked\nworked\n" and looked[-1] == 2
    with pytest.raises(RunError, match=r"the search's workers have failed: worked \(log: "):
        searching(tmp_path, 2, 1, lambda: None)


@pytest.mark.slow
def test_two_workers_that_are_killed_go_on_to_the_same_number(write_recipe, tmp_path):
    pytest.importorskip("optuna")
    stages = [{"name": "one", "epochs": 40, "batch_size": 4, "methods": ["focal"], "optimizer": {"lr": 0.05}}]
    path = write_recipe(**{**FOCAL, "stages": stages, "checkpoint_seconds": "0.2"})
    command = [sys.executable, "-m", "ltcore", "sweep", path, "--grid", GAMMA, "--search", "6", "--jobs", "2"]
    command += ["--holdout", "1", "--out", tmp_path / "s"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while len(list(tmp_path.glob("s/search/trial-*/metrics.jsonl"))) < 2:
        assert first.poll() is None
        time.sleep(0.05)
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes()
        except OSError:
            continue
        if b"ltcore.sweeps.search" in words and str(tmp_path).encode() in words:
            os.kill(int(process.parent.name), signal.SIGKILL)
    first.kill()
    first.wait()
    found = Search(tmp_path / "s")
    assert "running" in {row["state"] for row in found.rows()}
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert [row["state"] for row in found.rows()] == ["complete"] * 6
    assert "6 trials (6 complete)" in again.stdout and "best.yaml" in again.stdout


# -- machines of a cluster ---------------------------------------------------------------------------------------------

SBATCH = """#!/bin/sh
cp "$1" "{folder}/seen.sh"
echo "Submitted batch job 7"
"""


def test_what_slurm_gets(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun"):
        (tmp_path / "bin" / name).write_text(SBATCH.format(folder=tmp_path))
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    made = executor("slurm:gpu", tmp_path, {"gpus_per_node": 1, "timeout_min": 600})
    made.submit(Worker([], 2))
    text = (tmp_path / "seen.sh").read_text()
    for line in ("partition=gpu", "gpus-per-node=1", "time=600", "cpus-per-task=4", "job-name=ltcore", "nodes=1"):
        assert f"#SBATCH --{line}" in text, text
    assert "submitit.core._submit" in text


def test_mistakes_about_clusters(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    for where, settings, message in [
        ("moon", {}, "--on moon: write slurm, slurm:PARTITION or local"),
        ("local:x", {}, "--on local:x: write slurm"),
        ("slurm", {}, "--on slurm: "),
        ("local", {"gpu": 1}, "--cluster: .*gpu"),
    ]:
        with pytest.raises(RecipeError, match=message):
            executor(where, tmp_path, settings)


def test_a_worker_stops_in_good_order_and_is_queued_again(write_recipe, tmp_path):
    submitit = pytest.importorskip("submitit")
    worker = Worker([tmp_path / "a"], 2)
    again = worker.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function.jobs == worker.jobs and again.function.threads == 2


@pytest.mark.slow
def test_a_sweep_through_submitit(write_recipe, tmp_path):
    pytest.importorskip("submitit")
    path = write_recipe(**FOCAL)
    command = [sys.executable, "-m", "ltcore", "sweep", path, "--grid", "methods.focal.options.gamma=1,2"]
    command += ["--seeds", "0..1", "--jobs", "2", "--on", "local", "--cluster", "timeout_min=10", "--out", "s"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "2 workers on local" in told.stdout and "4 done" in told.stdout and told.stdout.count("2/2") == 2
    jobs = list(folders(tmp_path / "s"))
    assert len(jobs) == 4 and all(len(job.attempts()) == 1 for job in jobs)
    bad = Job("bad", load_recipe(path, ["data.options.class_counts=[1]"]), {})
    write_job(tmp_path / "s", bad)
    assert json.loads((jobs[0].finished / "result.json").read_text())["seed"] in (0, 1)
