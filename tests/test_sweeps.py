"""Sweeps: which runs are one job, what they share, and an engine that is killed, doubled, and told of failures."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ltcore.errors import RecipeError
from ltcore.recipe.identity import digest
from ltcore.recipe.loading import load_recipe
from ltcore.sweeps.engine import TRIES, Engine, Observer, Outcome, Slots, Work, _cards, slots_of
from ltcore.sweeps.folder import JobFolder, folders, write_job
from ltcore.sweeps.grid import axis, combinations, seeds_of
from ltcore.sweeps.jobs import Job, code_of, with_shared
from ltcore.sweeps.prints import prints_of
from ltcore.sweeps.view import Lines, left, status, status_text

DIGITS = Path(__file__).parents[1] / "recipes" / "digits_lt_ofa.yaml"

#: A run that trains nothing, and does what its recipe's description says.
FAKE = """
import json, os, pathlib, signal, sys, time
arguments, started = sys.argv[1:], os.getcwd()
os.chdir(pathlib.Path(arguments[1]).parent)
pathlib.Path("where.txt").write_text(started)
text = pathlib.Path("recipe.yaml").read_text()
run = pathlib.Path("runs/r/one")
run.mkdir(parents=True, exist_ok=True)
(run / "recipe.yaml").write_text(text)
with open("calls.txt", "a") as calls:
    calls.write(" ".join(arguments) + "\\n")
print("begun", flush=True)
if "--features" in arguments:
    features = pathlib.Path(arguments[arguments.index("--features") + 1])
    features.mkdir(parents=True, exist_ok=True)
    (features / pathlib.Path().absolute().name).touch()
    pathlib.Path("seen.txt").write_text(str(len(list(features.iterdir()))))
pathlib.Path("card.txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
if pathlib.Path("busy").exists():  # until another has tried
    while len(list(pathlib.Path("..").glob("*/failed"))) < 1:
        time.sleep(0.01)
    time.sleep(0.5)
    os.unlink("busy")
time.sleep(0.3 if "slow" in text else 0.02)
if "fails" in text and not pathlib.Path("mended").exists():
    sys.exit("r.yaml:1: the data is not there")
if "memory" in text and len(list(pathlib.Path("..").glob("*/busy"))):
    pathlib.Path("failed").touch()
    sys.exit("CUDA out of memory")
if "dies" in text or ("once" in text and "--resume" not in arguments):
    os.kill(os.getpid(), signal.SIGKILL)
(run / "result.json").write_text("{}")
"""


@pytest.fixture
def make(write_recipe):
    """``make("what it does", seed=1, stages=[...])``: a job."""

    def job(does, seed=0, name="r", **parts):
        path = write_recipe(name, description=f"'{does}'", **parts)
        return Job(f"{name} {does}", load_recipe(path, seed=seed), {"train": 1})

    return job


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Runs an engine of fakes over jobs; returns its outcome, and what it has told."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(Engine, "program", (sys.executable, str(tmp_path / "fake.py")))

    def run(jobs, slots=2, cards=()):
        written = [write_job(tmp_path / "sweep", job) for job in with_shared(jobs)]
        told = []

        class Told(Observer):
            def began(self, job, again):
                told.append(("again" if again else "began", job.about["name"]))

            def failed(self, job, message):
                told.append(("failed", message))

            def told(self, text):
                told.append(("told", text))

        return Engine(written, Slots(slots, 1, cards), Told()).run(), told

    return run


def calls(folder):
    """How often each job's program was started anew, and with --resume."""
    found = Counter()
    for path in folder.glob("jobs/*/calls.txt"):
        for line in path.read_text().splitlines():
            found["resumed" if "--resume" in line else "anew"] += 1
    return found


# -- which runs are one job, and what they share -----------------------------------------------------------------------

STAGE = {"name": "one", "epochs": 1, "batch_size": 8, "optimizer": {"lr": 0.1}}
SECOND = {"name": "two", "epochs": 2, "trainable": ["classifier"], "optimizer": {"lr": 0.1}}


def test_an_address_is_what_the_result_depends_on(make, monkeypatch):
    one = make("a")
    same = make("another text", name="other", device="cpu", checkpoint_seconds="1", published="[]")
    assert one.address == same.address and one.digest == same.digest
    others = [
        make("a", seed=1),
        make("a", stages=[{**STAGE, "epochs": 2}]),
        make("a", stages=[STAGE, SECOND]),
        make("a", stages=[SECOND | {"trainable": ["backbone", "classifier"]}, STAGE]),
        Job("a", one.loaded, {"train": 2}),
    ]
    assert len({job.address for job in (one, *others)}) == 6
    assert make("a", seed=1).digest == one.digest
    assert list(one.code) == ["ltcore-cifar-resnet"]  # the data set is core's
    monkeypatch.setattr("ltcore.sweeps.jobs.code_of", lambda loaded: {"ltcore-cifar-resnet": "new"})
    assert make("a").address != one.address


def test_code_is_digested_as_a_run_does_it():
    from ltcore.files.environment import _code
    from ltcore.plan.plan import make_plan

    loaded = load_recipe(DIGITS)
    plan = make_plan(loaded)
    methods = {(entry.offer.distribution, entry.offer.module) for entry in plan.entries.values()}
    methods |= {(loaded.offer(use).distribution, loaded.offer(use).module) for use in ("digits_lt", "cifar_resnet")}
    told = _code(methods)
    assert code_of(loaded) == {name: value for name, value in told.items() if name != "ltcore"}
    assert set(code_of(loaded)) == {"ltcore-cifar-resnet", "ltcore-ofa"}


def test_stages_in_common_are_jobs_of_their_own(make):
    tau = {"calibrate": ["tau_norm"], "methods": {"tau_norm": {}}}
    jobs = [
        make("crt", stages=[STAGE, SECOND]),
        make("lws", stages=[STAGE, SECOND | {"epochs": 3}]),
        make("tau 1", stages=[STAGE, SECOND], **tau),
        make("tau 0", stages=[STAGE, SECOND], calibrate=["tau_norm"], methods={"tau_norm": {"options": {"tau": 0}}}),
        make("other seed", seed=1, stages=[STAGE, SECOND]),
        make("other first", stages=[STAGE | {"batch_size": 4}, SECOND]),
    ]
    made = with_shared(jobs)
    by_name = {job.name.removeprefix("r "): job for job in made}
    first = by_name["crt: first 1 stage"]
    assert [stage.name for stage in first.loaded.recipe.stages] == ["one"] and first.after is None
    assert by_name["crt"].after == first.address and by_name["lws"].after == first.address
    # What only calibrates goes on from what ends there.
    assert by_name["tau 1"].after == by_name["tau 0"].after == by_name["crt"].address
    assert by_name["other seed"].after is None and by_name["other first"].after is None
    assert len(made) == 7
    positions = {job.address: index for index, job in enumerate(made)}
    assert all(job.after is None or positions[job.after] < index for index, job in enumerate(made))


def test_a_cell_that_is_the_first_stages_of_others_is_what_they_take_over(make):
    jobs = [make("second", stages=[STAGE, SECOND]), make("ce", stages=[STAGE])]
    made = with_shared(jobs)
    assert len(made) == 2 and made[1].after == made[0].address == jobs[1].address
    with_selection = {"select": {"options": {"stages.one.epochs": [1]}, "holdout": 1}}
    jobs = [make("second", stages=[STAGE, SECOND], **with_selection), make("ce", stages=[STAGE])]
    assert [job.after for job in with_shared(jobs)] == [None, None]


def test_names_of_methods_and_unused_ones_make_no_difference(make):
    jobs = [
        make("a", stages=[{**STAGE, "methods": ["focal"]}, SECOND], methods={"focal": {}}),
        make(
            "b",
            stages=[{**STAGE, "methods": ["focal"]}, {**SECOND, "methods": ["cdt"]}],
            methods={"focal": {}, "cdt": {}},
        ),
    ]
    made = with_shared(jobs)
    assert len(made) == 3 and [job.after for job in made[1:]] == [made[0].address] * 2
    assert list(made[0].loaded.recipe.methods) == ["focal"]


# -- the engine --------------------------------------------------------------------------------------------------------


def test_each_job_is_trained_once_and_what_is_done_is_left(make, engine, tmp_path):
    jobs = [make("x", seed=seed) for seed in range(5)] + [make("again", seed=0)]
    outcome, told = engine(jobs)
    assert len(outcome.done) == outcome.trained == 5 and not outcome.failed
    assert calls(tmp_path / "sweep") == {"anew": 5}
    outcome, told = engine(jobs)
    assert len(outcome.done) == 5 and outcome.trained == 0 and told == []
    folder = tmp_path / "sweep" / "jobs" / jobs[0].address
    (line,) = (folder / "calls.txt").read_text().splitlines()
    assert line == f"run {folder}/recipe.yaml --out {folder}/runs --threads 1"
    assert (folder / "where.txt").read_text() == os.getcwd(), "relative paths mean what they did for the engine"


def test_what_takes_over_waits_and_is_told_where_from(make, engine, tmp_path):
    jobs = [make("a", stages=[STAGE, SECOND]), make("slow first", stages=[STAGE])]
    _, told = engine(jobs)
    assert [name for _, name in told] == ["r slow first", "r a"]
    (line,) = (tmp_path / "sweep" / "jobs" / jobs[0].address / "calls.txt").read_text().splitlines()
    source = tmp_path / "sweep" / "jobs" / jobs[1].address / "runs" / "r" / "one"
    assert line.endswith(f"--from {source}")


def test_a_training_that_is_killed_goes_on_and_is_given_up_in_the_end(make, engine, tmp_path):
    outcome, told = engine([make("killed once", seed=1), make("dies", stages=[STAGE])])
    assert [job.about["name"] for job in outcome.done] == ["r killed once"]
    assert list(outcome.failed.values()) == [f"killed {TRIES} times, at last by SIGKILL"]
    assert ("again", "r killed once") in told and ("told", "r killed once was killed (SIGKILL) and goes on") in told
    assert calls(tmp_path / "sweep") == {"anew": 2, "resumed": 1 + TRIES - 1}


def test_a_failure_stops_nothing_else_and_is_tried_again_by_the_next_command(make, engine, tmp_path):
    bad = make("fails", stages=[STAGE])
    jobs = [bad, make("after it", stages=[STAGE, SECOND]), make("other", seed=3)]
    outcome, _ = engine(jobs)
    assert outcome.failed == {bad.address: "r.yaml:1: the data is not there"}
    assert [job.about["name"] for job in outcome.blocked] == ["r after it"]
    assert [job.about["name"] for job in outcome.done] == ["r other"]
    rows = {row["name"]: row for row in status(list(folders(tmp_path / "sweep")))}
    assert rows["r fails"]["state"] == "failed" and rows["r after it"]["state"] == "waiting"
    text = status_text(list(rows.values()))
    assert "1 done, 1 failed, 1 waiting" in text and "the data is not there" in text and "log.txt" in text
    (tmp_path / "sweep" / "jobs" / bad.address / "mended").touch()
    outcome, _ = engine(jobs)
    assert len(outcome.done) == 3 and not outcome.failed


def test_jobs_without_memory_are_trained_with_fewer_beside_them(make, engine, tmp_path):
    sweep = tmp_path / "sweep" / "jobs"
    one = make("slow", seed=1)
    write_job(tmp_path / "sweep", one)
    (sweep / one.address / "busy").touch()
    outcome, told = engine([one, make("memory")])
    assert len(outcome.done) == 2 and not outcome.failed
    assert [text for kind, text in told if kind == "told"] == [
        "r memory had no memory beside others; from now on 1 at a time"
    ]


def test_a_job_that_began_beside_others_is_tried_alone_before_it_fails(make, engine, tmp_path):
    folder = write_job(tmp_path / "sweep", make("memory"))
    (folder.path / "log.txt").write_text("CUDA out of memory")
    left = Engine([folder], Slots(3, 1))
    ended = SimpleNamespace(poll=lambda: 1, returncode=1)
    for room in (2, 1, 1):  # the last began when there was room for two
        left.running = [Work(folder, ended, folder.lock(), None, crowded=True)]
        left._left(left.running[0])
        assert left.room == room and not left.outcome.failed
    assert left.run().done == [folder], "it has the memory now"


def test_two_engines_train_nothing_twice(make, engine, tmp_path):
    jobs = [make("slow", seed=seed) for seed in range(8)]
    results = []
    threads = [threading.Thread(target=lambda: results.append(run_quietly(engine, jobs))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls(tmp_path / "sweep") == {"anew": 8}
    assert [len(outcome.done) for outcome in results] == [8, 8]
    assert sum(outcome.trained for outcome in results) == 8 and all(outcome.trained for outcome in results)


def run_quietly(engine, jobs):
    """An engine in a thread, which may not change what signals do."""
    return engine(jobs)[0]


def test_a_lock_stays_with_what_trains(make, tmp_path):
    folder = write_job(tmp_path / "sweep", make("x"))
    lock = folder.lock()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], pass_fds=[lock])
    os.close(lock)
    assert folder.locked and folder.lock() is None
    child.kill()
    child.wait()
    assert not folder.locked
    os.close(folder.lock())


def test_threads_stay_those_of_the_first_attempt(make, engine, tmp_path):
    job = make("killed once")
    folder = write_job(tmp_path / "sweep", job)
    folder.begin(3, False)
    engine([job])
    assert all("--threads 3" in line for line in (folder.path / "calls.txt").read_text().splitlines())
    own = make("x", threads=2, seed=5)
    engine([own])
    assert "--threads 2" in (tmp_path / "sweep" / "jobs" / own.address / "calls.txt").read_text()


def test_cards_are_shared_out(make, engine, tmp_path, monkeypatch):
    assert _cards({"CUDA_VISIBLE_DEVICES": "2,GPU-a"}) == ("2", "GPU-a")
    assert _cards({"CUDA_VISIBLE_DEVICES": ""}) == () and _cards({"CUDA_VISIBLE_DEVICES": "-1"}) == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert slots_of(None, None).jobs == 3 and slots_of(7, None).cards == ("0", "1", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cores = len(os.sched_getaffinity(0))
    assert slots_of(None, None) == Slots(1, cores) and slots_of(1, 1).threads == 1
    with pytest.raises(RecipeError, match=f"--jobs {cores + 1}: this machine has {cores} cores and no GPU"):
        slots_of(cores + 1, None)


def test_a_card_more_is_used_before_one_is_shared_more(make, engine, tmp_path):
    _, told = engine([make("slow", seed=seed) for seed in range(4)], slots=4, cards=("5", "7"))
    assert [kind for kind, _ in told] == ["began"] * 4
    cards = Counter(path.read_text() for path in tmp_path.glob("sweep/jobs/*/card.txt"))
    assert cards == {"5": 2, "7": 2}
    left = Engine([], Slots(4, 1, ("5", "7")))
    left.running = [Work(None, None, 0, card, False) for card in ("5", "5")]  # the others have ended
    assert left._card() == "7"
    left.running.append(Work(None, None, 0, "7", False))
    assert left._card() == "7"
    assert Engine([], Slots(4, 1))._card() is None


def test_features_are_shared_behind_the_same_first_stages_until_the_last_is_done(make, engine, tmp_path):
    cached = {**SECOND, "cache": "eval"}
    arms = [make("x", stages=[STAGE, {**cached, "epochs": number}]) for number in (1, 2, 3)]
    alone = make("x", seed=1, stages=[STAGE, cached])
    frozen = [make("x", seed=seed, stages=[{**cached, "batch_size": seed + 1}]) for seed in range(2)]
    outcome, _ = engine([*arms, alone, *frozen], slots=1)
    assert len(outcome.done) == 7 and not list((tmp_path / "sweep" / "features").glob("*/*"))
    seen = {job.address: tmp_path / "sweep" / "jobs" / job.address / "seen.txt" for job in [*arms, alone, *frozen]}
    assert sorted(seen[job.address].read_text() for job in arms) == ["1", "2", "3"]
    assert sorted(seen[job.address].read_text() for job in frozen) == ["1", "2"], "of their own"
    assert not seen[alone.address].exists(), "nobody has the same frozen part"


def test_features_stay_while_another_command_waits_for_them(make, engine, tmp_path):
    arms = [make("x", stages=[STAGE, {**SECOND, "cache": "eval", "epochs": number}]) for number in (1, 2, 3)]
    elsewhere = write_job(tmp_path / "sweep", next(job for job in with_shared(arms) if job.address == arms[2].address))
    lock = elsewhere.lock()
    engine(arms[:2])
    (features,) = (tmp_path / "sweep" / "features").iterdir()
    assert len(list(features.iterdir())) == 2
    os.close(lock)
    engine(arms)
    assert not features.exists()


def test_a_damaged_job_is_named(make, engine, tmp_path):
    folder = write_job(tmp_path / "sweep", make("x"))
    (folder.path / "job.json").write_text("{")
    with pytest.raises(Exception, match=r"job\.json is damaged"):
        JobFolder(folder.path).about  # noqa: B018


# -- what is typed -----------------------------------------------------------------------------------------------------


def test_a_grid(write_recipe):
    path = write_recipe(methods={"focal": {}}, stages=[{**STAGE, "methods": ["focal"]}])
    found = combinations(
        path, ["checkpoint_seconds=1"], ["methods.focal.options.gamma=1,2.5", "stages.one.batch_size=4,8"], [0, 3]
    )
    assert [combination.name for combination in found] == [
        "gamma=1, batch_size=4",
        "gamma=1, batch_size=8",
        "gamma=2.5, batch_size=4",
        "gamma=2.5, batch_size=8",
    ]
    assert [loaded.recipe.seed for loaded in found[2].runs] == [0, 3]
    assert found[2].runs[0].recipe.methods["focal"].options == {"gamma": 2.5}
    assert found[2].runs[0].recipe.stages[0].batch_size == 4
    assert len({digest(combination.runs[0]) for combination in found}) == 4
    (whole,) = combinations(path, [], ["stages.one.optimizer={name: sgd, lr: 0.2}"], [0])
    assert whole.runs[0].recipe.stages[0].optimizer.lr == 0.2
    (alone,) = combinations(path, [], [], [0])
    assert alone.name == "r"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "write PATH=VALUE,VALUE"),
        ("a=", "write PATH=VALUE,VALUE"),
        ("a=1,1", "a value stands there twice"),
        ("a=[1", "not valid YAML"),
    ],
)
def test_a_bad_grid(text, message):
    with pytest.raises(RecipeError) as refusal:
        axis(text)
    assert str(refusal.value).startswith(f"--grid {text}: ") and message in str(refusal.value)


def test_seeds():
    assert seeds_of(["0..4"]) == [0, 1, 2, 3, 4]
    assert seeds_of(["3", "0,2"]) == [3, 0, 2] and seeds_of(["1..1,1"]) == [1]
    for text in ("", "a", "1..", "4..0", "-1", "0.5"):
        with pytest.raises(RecipeError, match="--seeds"):
            seeds_of([text])


def test_the_same_path_twice_and_what_tells_no_runs_apart_are_refused(write_recipe):
    path = write_recipe(stages=[STAGE])
    with pytest.raises(RecipeError, match=r"--grid stages\.one\.epochs: is given twice"):
        combinations(path, [], ["stages.one.epochs=1", "stages.one.epochs=2"], [0])
    for key, instead in [("seed", "give the seeds with --seeds"), ("threads", "set it for all with --set")]:
        with pytest.raises(RecipeError, match=rf"--grid {key}: is no setting by which .*; {instead}"):
            combinations(path, [], [f"{key}=1,2"], [0])


def test_how_long_it_takes(make, tmp_path):
    folder = write_job(tmp_path / "sweep", make("x", stages=[STAGE, SECOND]))
    assert folder.share() == 0 and left(0.05, time.time()) == ""
    run = folder.path / "runs" / "r" / "one"
    run.mkdir(parents=True)
    (run / "recipe.yaml").touch()
    line = {"stage": "two", "epoch": 0, "loss": 1.0, "lr": 0.1, "seconds": 1.0, "images_per_second": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert folder.share() == pytest.approx(2 / 3)
    assert left(0.5, time.time() - 600) == "10 min left" and left(0.1, time.time() - 3600) == "9.0 h left"


def test_what_has_ended_is_counted(make, tmp_path):
    jobs = [write_job(tmp_path / "sweep", make("x", seed=seed)) for seed in (0, 1)]
    lines = Lines(io.StringIO(), 2)
    for job in jobs:
        lines.began(job, again=False)
        lines.ended(job)
    assert lines.stream.getvalue() == (
        "begins: r x, seed 0\ndone (1 of 2): r x, seed 0\nbegins: r x, seed 1\ndone (2 of 2): r x, seed 1\n"
    )


def test_a_sweep_is_trained_here_unless_it_is_told_where(cli, write_recipe, tmp_path, monkeypatch):
    trained = []

    def train(jobs, slots, table):
        trained.append((len(jobs), slots))
        return Outcome(done=list(jobs))

    monkeypatch.setattr("ltcore.sweeps.work.train", train)
    monkeypatch.setattr("ltcore.sweeps.work.prints_of", lambda recipes: [{"train": 1}] * len(recipes))
    words = ("sweep", write_recipe(stages=[STAGE]), "--grid", "stages.one.epochs=1,2", "--out", tmp_path / "s")
    told = cli(*words, "--jobs", 1, "--threads", 1)
    assert (told.code, told.err) == (0, "") and trained == [(2, Slots(1, 1))]
    cli(*words, "--on", "nowhere").is_one_message(2, "--on ")
    assert len(trained) == 1


def test_data_that_is_missing_is_one_message_before_anything_is_trained(write_recipe, tmp_path):
    path = write_recipe(data="{use: cifar10_lt, options: {root: nowhere}}")
    with pytest.raises(Exception, match="nowhere") as refusal:
        prints_of([load_recipe(path)])
    assert len(str(refusal.value).splitlines()) == 1 and "Traceback" not in str(refusal.value)


@pytest.mark.slow
def test_data_is_read_once_and_its_print_is_the_results(write_recipe, tmp_path):
    import ltcore

    one, two = write_recipe("one"), write_recipe("two", stages=[{**STAGE, "epochs": 2}])
    found = prints_of([load_recipe(one), load_recipe(two)])
    assert found[0] == found[1] == ltcore.run(one, out=tmp_path / "runs").result["data_fingerprint"]


# -- the whole, for real -----------------------------------------------------------------------------------------------

TABLE = """
title: a table of our own
seeds: [0, 1, 2]
changes: [stages.representation.epochs=3, checkpoint_seconds=0]
columns:
  few: {{label: ten steps, changes: [stages.finetune.iterations=10]}}
  more: {{label: twenty, changes: [stages.finetune.iterations=20]}}
rows:
  plain: {{label: OFA, recipe: {recipes}/digits_lt_ofa.yaml}}
  focal: {{label: OFA and focal loss, recipe: {recipes}/digits_lt_ofa_focal.yaml}}
  half: {{label: OFA by half, recipe: {recipes}/digits_lt_ofa.yaml, changes: [methods.ofa.options.head_ratio=0.5]}}
"""


@pytest.mark.slow
def test_a_table_survives_two_kills_and_equals_runs_made_one_by_one(tmp_path):
    tables = tmp_path / "tables"
    tables.mkdir()
    relative = os.path.relpath(DIGITS.parent, tables)
    (tables / "own.yaml").write_text(textwrap.dedent(TABLE).format(recipes=relative))
    command = [sys.executable, "-m", "ltcore", "table", "tables/own.yaml", "--run", "--jobs", "2", "--out", "work"]

    def count():
        return len(list(tmp_path.glob("work/jobs/*/runs/*/*/result.json")))

    def workers():
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
                inside = str(tmp_path) in os.readlink(path.parent / "cwd")
            except OSError:
                continue
            if any(word.endswith(b"/recipe.yaml") for word in words) and inside:
                found.append(int(path.parent.name))
        return found

    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while count() < 3:
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()  # the engine; what it trains goes on
    first.wait()
    second = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while count() < 8:
        assert second.poll() is None
        time.sleep(0.05)
    while not (found := workers()):
        time.sleep(0.01)
    os.kill(found[0], signal.SIGKILL)
    assert second.wait(600) == 0

    jobs = [JobFolder(path.parent) for path in tmp_path.glob("work/jobs/*/job.json")]
    cells = [job for job in jobs if ": first" not in job.about["name"]]
    assert len(cells) == 18 and len(jobs) == 18 + 6, "two first stages, with and without the focal loss, a seed"
    for job in jobs:
        # Runs, not attempts: what is killed before it has a run directory has trained nothing, and begins again.
        runs = list(job.path.glob("runs/*/[!.]*"))
        assert [job.finished] == runs, "trained once; what was killed went on"
    trained = Counter()
    for job in cells:
        result = json.loads((job.finished / "result.json").read_text())
        assert result["reused"]["stages"] == 1
        trained[job.about["after"]] += 1
    assert sorted(trained.values()) == [2, 2, 2, 4, 4, 4]
    assert len(list((tmp_path / "results" / "runs").glob("*.json"))) == 18

    # One by one, with the same number of threads, each from its beginning.
    for job in sorted(cells, key=lambda job: job.address)[::4]:
        subprocess.run(
            [sys.executable, "-m", "ltcore", "run", job.path / "recipe.yaml", "--out", tmp_path / "alone"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        alone = max((tmp_path / "alone").glob("*/*/predictions.npz"), key=lambda path: path.stat().st_mtime_ns)
        with np.load(alone) as one, np.load(job.finished / "predictions.npz") as other:
            assert all(np.array_equal(one[name], other[name]) for name in one.files)


@pytest.mark.slow
def test_two_commands_on_one_directory_share_the_work(write_recipe, tmp_path):
    path = write_recipe(stages=[{**STAGE, "epochs": 3}, SECOND])
    command = [sys.executable, "-m", "ltcore", "sweep", str(path), "--grid", "stages.two.epochs=1,2", "--seeds", "0..1"]
    command += ["--jobs", "1", "--threads", "1", "--out", str(tmp_path / "s")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [each.communicate(timeout=600) for each in both]
    assert [each.returncode for each in both] == [0, 0], told
    jobs = list(folders(tmp_path / "s"))
    assert len(jobs) == 4 + 2, "two first stages"
    assert all(job.finished and [a["resumed"] for a in job.attempts()] == [False] for job in jobs)
    begun = [out.count("begins: ") for out, _ in told]
    assert sum(begun) == 6 and all(begun), "each has trained some"
    # Both have seen all of it in the end.
    assert told[0][0].splitlines()[-3:] == told[1][0].splitlines()[-3:]


@pytest.mark.slow
def test_stopping_is_passed_on_and_leaves_checkpoints(tmp_path):
    command = [sys.executable, "-m", "ltcore", "sweep", str(DIGITS), "--out", "work", "--set", "checkpoint_seconds=600"]
    engine = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("work/jobs/*/runs/*/*/metrics.jsonl")):
        assert engine.poll() is None
        time.sleep(0.05)
    engine.send_signal(signal.SIGTERM)
    assert "to go on, start the same command again" in engine.communicate(timeout=60)[1]
    (job,) = folders(tmp_path / "work")
    assert not job.locked and not job.finished and job.failure is None
    assert list(job.path.glob("runs/*/*/checkpoints/last.safetensors"))
    assert "1 stopped" in status_text(status([job]))
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and "goes on:" in again.stdout
    assert [attempt["resumed"] for attempt in job.attempts()] == [False, True]
