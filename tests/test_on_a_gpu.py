"""`benchmarks/on_a_gpu.py`: what is trained in which order, what travels, and what survives a cut-off."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ltcore
from ltcore.data.prepare import prepare
from ltcore.errors import RunError
from ltcore.plan.plan import make_plan
from ltcore.recipe.identity import digest
from ltcore.recipe.loading import load_recipe
from ltcore.sweeps.folder import JobFolder, folders
from ltcore.sweeps.jobs import Job, code_of, with_shared
from ltcore.sweeps.work import prepared
from ltcore.tables.records import Records, write_record
from ltcore.training.data import known, read_splits

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture
def jobs():
    return import_module("gpu.jobs")


@pytest.fixture
def records():
    return import_module("gpu.records")


# -- which recipes, in what form and order -----------------------------------------------------------------------------


def test_the_recipes_in_order_of_worth(jobs, tmp_path):
    names = ["ce", "ldam_drw", "balanced_softmax", "mixup_crt", "safa_ldam_drw", "stg", "glag", "ofa", "cdt", "mislas"]
    assert jobs.ORDER == names
    data = tmp_path / "data.npz"
    made = jobs.asked_of(names, [0, 1], ROOT, tmp_path, data, short=False)
    assert [(one.name, one.seed) for one in made] == [
        (f"cifar100_lt_{name}", seed) for seed in (0, 1) for name in names
    ]
    for one in made:
        recipe, plain = one.loaded.recipe, load_recipe(ROOT / "recipes" / f"{one.name}.yaml").recipe
        assert {stage.precision for stage in recipe.stages} == {"fp32"}
        assert recipe.data.use == "npz" and recipe.data.imbalance is None and recipe.name == plain.name
        assert (recipe.data.holdout, recipe.data.transform) == (plain.data.holdout, plain.data.transform)
        same = [stage.model_copy(update={"precision": "auto"}) for stage in recipe.stages]
        assert (same, recipe.methods, recipe.backbone) == (plain.stages, plain.methods, plain.backbone)
        assert digest(one.stands_for) == digest(load_recipe(ROOT / "recipes" / f"{one.name}.yaml"))
        assert one.stands_for.recipe.seed == one.seed


def test_stages_that_recipes_share_are_jobs_of_their_own(jobs, tmp_path):
    names = ["ce", "ofa", "mixup_crt", "stg"]
    asked = jobs.asked_of(names, [0], ROOT, tmp_path, tmp_path / "data.npz", short=False)
    ce, ofa, crt, stg = mine = [Job(one.name, one.loaded, {"train": "x"}) for one in asked]
    made = {job.address: job for job in with_shared(mine)}
    assert made[ofa.address].after == ce.address, "cross-entropy is OFA's first stage"
    assert made[crt.address].after == made[stg.address].after not in (None, ce.address)
    assert len(made) == 5
    other = jobs.asked_of(["ce"], [0], ROOT, tmp_path / "b", tmp_path / "b" / "data.npz", short=False)[0]
    elsewhere = Job(other.name, other.loaded, {"train": "x"})
    assert elsewhere.address == ce.address, "where the data lies changes nothing"


def test_the_short_form_of_a_rehearsal_fits_together(jobs, tmp_path):
    for one in jobs.asked_of(jobs.ORDER, [0], ROOT, tmp_path, tmp_path / "data.npz", short=True):
        make_plan(one.loaded, to_run=False)
        assert {(stage.epochs, stage.iterations) for stage in one.loaded.recipe.stages} <= {(1, None), (None, 3)}
        assert one.stands_for is None, "a short run stands for no recipe"


def test_the_copy_is_prepared_as_the_data_set_is(jobs):
    from ltcore.discovery.catalogue import find, load

    facts = load(find("cifar100_lt"))().facts()
    assert jobs.CIFAR100 == {
        "mean": list(facts.mean),
        "std": list(facts.std),
        "crop_padding": facts.crop_padding,
        "flip": facts.flip,
    }
    assert {"kind": facts.imbalance.kind, "factor": facts.imbalance.factor} == jobs.TAIL


@pytest.mark.parametrize(
    "data",
    [
        {"use": "digits_lt"},
        {"use": "cifar100_lt", "imbalance": {"kind": "exponential", "factor": 50}},
        {"use": "cifar100_lt", "imbalance": {"kind": "exponential", "factor": 100, "seed": 1}},
        {"use": "cifar100_lt", "holdout": 5, "holdout_before_cut": True},
    ],
)
def test_a_recipe_on_other_data_is_refused(jobs, data):
    with pytest.raises(ValueError, match="r does not train on CIFAR-100-LT at imbalance 100"):
        jobs.changes({"name": "r", "data": data, "stages": []}, Path("x"), False)


@pytest.mark.parametrize(
    ("cores", "memory", "share", "most"),
    [
        (2, None, None, 1),
        (1, None, None, 1),
        (16, 80.0, None, 15),
        (16, 24.0, None, 8),
        (16, 1.0, None, 1),
        (16, 80.0, 0.3, 4),
        (16, 80.0, 0.01, 15),
        (16, 80.0, 0.97, 2),
    ],
)
def test_how_many_at_once(jobs, cores, memory, share, most):
    assert jobs.default_jobs(cores, memory, share) == most


@pytest.fixture
def few(tmp_path):
    """An .npz file of ten classes, with head and tail enough for every method."""
    random, counts = np.random.RandomState(0), [130, 8, 7, 6, 5, 4, 4, 3, 3, 3]
    train, test = np.repeat(np.arange(10), counts), np.arange(10)
    images = {
        f"{split}_images": random.randint(0, 256, (len(labels), 32, 32, 3)).astype(np.uint8)
        for split, labels in (("train", train), ("test", test))
    }
    np.savez(tmp_path / "few.npz", train_labels=train, test_labels=test, **images)
    return tmp_path / "few.npz"


@pytest.mark.parametrize("label", ["CE", "LDAM-DRW", "SAFA + LDAM-DRW", "GLAG's AFG"])
def test_the_timed_stages_time_what_acts_late(few, tmp_path, offer_methods, label):
    timing = import_module("gpu.timing")
    assert list(timing.TIMED) == ["CE", "LDAM-DRW", "SAFA + LDAM-DRW", "GLAG's AFG"]
    offer_methods(epoch_clock=timing.EpochClock)
    content = timing.timed_recipe(label, ROOT, tmp_path, few, tmp_path / "clock.json", short=False)
    (tmp_path / "timed.yaml").write_text(json.dumps(content))
    recipe = load_recipe(tmp_path / "timed.yaml").recipe
    make_plan(load_recipe(tmp_path / "timed.yaml"))
    *before, timed = recipe.stages
    assert timed.iterations == 5 * 2 + 20 and timed.methods[-1] == "epoch_clock", "two batches of 128 an epoch"
    assert [stage.epochs for stage in before] == [1] * len(before)
    assert {entry.options.get("start_epoch", 0) for entry in recipe.methods.values()} == {0}
    assert (recipe.data.options["root"], recipe.data.options["path"]) == (str(tmp_path), "few.npz")
    assert {stage.precision for stage in recipe.stages} == {"fp32"}


def test_lines_are_timed_in_order_of_worth(few, tmp_path):
    timing = import_module("gpu.timing")
    names = list(timing.lines(ROOT, tmp_path, few, False))
    assert names[:3] == ["CE", "reference", "CE fp32 off"], "what must be shown first"
    assert names.index("ResNet-50 bf16 graphs") < names.index("LDAM-DRW") < names.index("CE fp32 compile")
    ways = {f"CE {precision} {way}" for precision in ("fp32", "tf32", "bf16") for way in ("off", "graphs", "compile")}
    assert ways - {"CE fp32 graphs"} < set(names), "which CE itself is, by auto"


@pytest.mark.parametrize("short", [True, False])
def test_each_precision_and_way_is_timed(few, tmp_path, offer_methods, short, monkeypatch):
    timing = import_module("gpu.timing")
    offer_methods(epoch_clock=timing.EpochClock)
    monkeypatch.setattr(timing, "there", lambda accelerate: accelerate)
    for precision, way in timing.QUICK:
        content = timing.quick_recipe(precision, way, ROOT, tmp_path, few, tmp_path / "clock.json", short)
        (tmp_path / "timed.yaml").write_text(json.dumps(content))
        (stage,) = load_recipe(tmp_path / "timed.yaml").recipe.stages
        assert (stage.precision, stage.accelerate) == (precision, way)
    (tmp_path / "large.yaml").write_text(json.dumps(timing.large_recipe("graphs", tmp_path / "clock.json", short)))
    loaded = load_recipe(tmp_path / "large.yaml")
    make_plan(loaded)
    (stage,) = loaded.recipe.stages
    assert (stage.precision, stage.accelerate, stage.batch_size) == ("bf16", "graphs", 8 if short else 128)


def test_without_time_nothing_more_is_begun_and_what_fails_is_a_line(few, tmp_path, monkeypatch, capsys):
    timing = import_module("gpu.timing")

    def fails():
        raise ltcore.RunError("too small a card")

    made = {"CE": lambda: {"epoch_s": 1.0}, "b": fails, "c": lambda: {"epoch_s": 2.0}}
    shared = []
    monkeypatch.setattr(timing, "lines", lambda *_: made)
    monkeypatch.setattr(timing, "share", lambda *where: shared.append(where))
    words = ["timing", "--root", str(ROOT), "--data", str(few), "--room", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*words, "--seconds", "60"])
    timing.main()
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["stage"] for line in said] == ["CE", "b", "c"] and said[1]["error"] == "too small a card"
    assert len(shared) == 1
    monkeypatch.setattr(sys, "argv", [*words, "--seconds", "-1"])
    timing.main()
    found = capsys.readouterr()
    assert not found.out and "no time for CE and what comes after it" in found.err and len(shared) == 1


def test_the_clock_times_epochs_and_profiles_steps(write_recipe, tmp_path, offer_methods):
    timing = import_module("gpu.timing")
    offer_methods(epoch_clock=timing.EpochClock)
    clock = {"epoch_clock": {"options": {"file": str(tmp_path / "clock.json"), "iterations": 30}}}
    stage = {"name": "joint", "iterations": 30, "batch_size": 8, "methods": ["epoch_clock"], "optimizer": {"lr": 0.1}}
    ltcore.run(write_recipe(methods=clock, stages=[stage]), out=tmp_path / "runs")
    found = json.loads((tmp_path / "clock.json").read_text())
    # 52 images in batches of 8 are 7 steps: four whole epochs, of which the first is left out, and two steps more.
    assert (found["epochs_timed"], found["steps_an_epoch"], found["steps_profiled"]) == (3, 7, 2)
    assert found["step_ms"] == pytest.approx(1000 * found["epoch_s"] / 7, abs=0.2)
    assert found["device_share"] == pytest.approx(found["device_ms"] / found["step_ms"], rel=0.05)
    assert 0 < found["device_ms"] and 0 < found["host_cpu_ms"]


# -- several seeds at once ---------------------------------------------------------------------------------------------


def test_turns_are_of_the_lowest_numbers(few, tmp_path, offer_methods):
    sharing = import_module("gpu.sharing")
    assert sharing.TURNS == (1, 8, 4, 2)
    assert [sharing.own_turns(sharing.TURNS, number) for number in (0, 1, 2, 3, 4, 7)] == [
        *([0, 1, 2, 3], [1, 2, 3], [1, 2], [1, 2], [1], [1]),
    ]
    offer_methods(seed_turns=sharing.SeedTurns)
    path = sharing.recipe_of(3, sharing.TURNS, ROOT, tmp_path, few, False)
    recipe = load_recipe(path, seed=3).recipe
    make_plan(load_recipe(path, seed=3))
    (stage,) = recipe.stages
    assert stage.iterations == 2 * 3 * 2 and stage.methods[-1] == "seed_turns" and stage.precision == "fp32"
    assert list(recipe.methods["seed_turns"].options["turns"]) == [1, 8, 4, 2]


def test_a_process_times_its_turns_and_waits_for_the_others(write_recipe, tmp_path, offer_methods, capsys, monkeypatch):
    sharing = import_module("gpu.sharing")
    offer_methods(seed_turns=sharing.SeedTurns)
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    for name, text in {"up-0": "", "done-0-0": "[9, 1, 1]", "done-1-0": "[9, 4, 2]"}.items():  # of the other process
        (meeting / name).write_text(text)

    def train(number, name):
        options = {"folder": str(meeting), "number": number, "turns": [1, 2]}
        stage = {"name": "joint", "iterations": 21, "batch_size": 8, "methods": ["t"], "optimizer": {"lr": 0.1}}
        methods = {"t": {"use": "seed_turns", "options": options}}
        ltcore.run(write_recipe(name, methods=methods, stages=[stage]), out=tmp_path / "runs")

    train(1, "a")
    assert (meeting / "up-1").exists() and len(json.loads((meeting / "done-1-1").read_text())) == 3
    (meeting / "done-1-1").write_text("[9, 3, 3]")
    sharing.Lines(meeting, (1, 2), 4).looked(None)
    one, two = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert (one["at_once"], one["epoch_s"], one["over_one"]) == (1, 1, 1)
    assert (two["at_once"], two["epoch_s"], two["step_ms"], two["over_one"]) == (2, 3, 750, 3)
    assert "3" in import_module("gpu.home").timing_table([one, two]).splitlines()[-1]
    monkeypatch.setattr(sharing, "PATIENCE", 0.05)
    (meeting / "done-0-0").unlink()
    with pytest.raises(RunError, match="no done-0-0 within"):
        train(1, "b")
    parents = iter([1, 2])
    monkeypatch.setattr(sharing.os, "getppid", lambda: next(parents))
    with pytest.raises(RunError, match="the engine has ended"):
        train(1, "c")


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two processes want two cores")
def test_two_seeds_take_turns(few, tmp_path):
    site = tmp_path / "site"
    program = (
        "import sys, pathlib; from gpu.machine import prepare_site; folder = pathlib.Path(sys.argv[1]); "
        "prepare_site(folder / 'none', folder / 'site'); from gpu.sharing import share; "
        "share(pathlib.Path(sys.argv[2]), folder / 'few.npz', folder / 'room', True)"
    )
    site.mkdir()
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT / 'benchmarks'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path, ROOT], capture_output=True, text=True, env=environment, check=False
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line.get("at_once") for line in lines] == [1, 2], done.stdout + done.stderr
    assert lines[0]["over_one"] == 1 and lines[1]["over_one"] > 0 and not lines[1]["mps"]


# -- what travels ------------------------------------------------------------------------------------------------------


def test_too_much_to_travel_is_told_by_parts():
    packing = import_module("gpu.packing")
    mib = packing.MIB
    assert packing.too_large({"data": 40 * mib, "wheels": 24 * mib}, 64 * mib) is None
    said = packing.too_large({"wheels": 3 * mib, "data": 62 * mib}, 64 * mib)
    assert said == "65.0 MiB would travel, more than 64: data 62.0, wheels 3.0"


def test_the_sizes_are_those_of_the_repository_and_of_what_is_packed(tmp_path):
    packing = import_module("gpu.packing")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for name, size in {
        "a": 10,
        "b": 20,
        ".gpu/data/x": 300,
        ".gpu/data/y": 50,
        ".gpu/on_a_gpu.py": 7,
        "big": 999,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / ".gitignore").write_text(".gpu/\nbig\n")
    subprocess.run(["git", "-C", tmp_path, "add", "a"], check=True)  # b is untracked, and travels too
    ignore = len(".gpu/\nbig\n")
    expected = {"the repository's files": 30 + ignore, "data": 350, "on_a_gpu.py": 7}
    assert packing.sizes(tmp_path, tmp_path / ".gpu") == expected


def test_images_travel_without_loss(tmp_path):
    images, random = import_module("gpu.images"), np.random.RandomState(0)
    arrays = {"train_labels": np.arange(2507) % 7, "test_labels": np.arange(3)}
    for split in ("train", "test"):
        size = (len(arrays[f"{split}_labels"]), 6, 6, 3)  # more than a picture holds, and fewer than a row
        arrays[f"{split}_images"] = random.randint(0, 256, size).astype(np.uint8)
    images.save(arrays, tmp_path / "data")
    assert len(list((tmp_path / "data").glob("*.webp"))) == 3
    found = images.read(tmp_path / "data")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[key], arrays[key]) and found[key].dtype == arrays[key].dtype for key in arrays)


def test_few_images_are_the_first_of_each_class():
    images = import_module("gpu.images")
    few = images.few_of(images.noise())
    assert np.bincount(few["train_labels"]).tolist() == [105] + [2] * 99
    assert few["test_labels"].tolist() == list(range(100))
    assert np.array_equal(few["train_images"][105], images.noise()["train_images"][500])


def test_the_published_files_travel_with_their_tail_cut(tmp_path, monkeypatch):
    packing, reading = import_module("gpu.packing"), import_module("gpu.images").read
    labels = torch.arange(200).remainder(2)
    images = torch.arange(200 * 3 * 4).remainder(256).to(torch.uint8).reshape(200, 3, 2, 2)
    asked = []

    def read(loaded, answers):
        assert loaded.recipe.data.options == {"root": str(tmp_path)} and answers["build_data"]
        split = ltcore.ArraySplit(images, labels)
        splits = ltcore.DataSplits(split, split, class_names=("a", "b"), mean=(0.5,) * 3, std=(1.0,) * 3)
        return prepare(splits, loaded.recipe.data)

    def prints_of(recipes):
        asked.extend(
            (loaded.recipe.data.use, np.load(path)["train_images"]) if path else loaded.recipe.data.use
            for loaded in recipes
            for path in [_path_of(loaded)]
        )
        return ["first", "second"]

    def _path_of(loaded):
        options = loaded.recipe.data.options
        return Path(options["root"], options["path"]) if "path" in options else None

    monkeypatch.setattr("ltcore.training.data.read_data", read)
    monkeypatch.setattr("ltcore.sweeps.prints.prints_of", prints_of)
    assert packing.pack_images(tmp_path, tmp_path / "data") == {"source": "first", "copy": "second"}
    found = reading(tmp_path / "data")
    assert np.bincount(found["train_labels"]).tolist() == [100, 1] and len(found["test_labels"]) == 200
    assert np.array_equal(found["test_images"], images.permute(0, 2, 3, 1).numpy())
    assert asked[0] == "cifar100_lt" and asked[1][0] == "npz"
    assert np.array_equal(asked[1][1], found["train_images"]), "what travels was looked at, and not what was read"


def test_what_is_carried_brings_what_it_needs():
    carried = import_module("gpu.packing").with_needs(["pydantic"])
    assert {"pydantic", "pydantic-core", "typing-extensions"} <= {name.replace("_", "-") for name in carried}
    assert not {"torch", "numpy"} & set(carried)


# -- what survives -----------------------------------------------------------------------------------------------------


def test_lines_survive_a_cut_off(records, tmp_path):
    notes = records.Notes(tmp_path / "out", tmp_path / "room")
    notes.add("results.jsonl", json.dumps({"digest": "a"}))
    cut = tmp_path / "out" / "results.jsonl"
    cut.write_text(cut.read_text() + '{"digest": "c", "figu')  # killed while it was written
    notes.add("results.jsonl", json.dumps({"digest": "d"}))
    assert [line["digest"] for line in records.read_lines(cut)] == ["a", "d"]
    assert [line["digest"] for line in records.read_lines(tmp_path / "room" / "results.jsonl")] == ["a", "d"]


@pytest.fixture
def make_job(tmp_path):
    """Makes the folder of a job with what `files_of` looks for."""

    def make(name, ended=True, size=1000, after=None):
        job = JobFolder(tmp_path / "room" / "sweep" / "jobs" / name)
        run = job.path / "runs" / name / "one"
        (run / "checkpoints").mkdir(parents=True)
        about = {"name": name, "seed": 0, "digest": name, "after": after, "lengths": [["a", 1]], "threads": None}
        for path in (job.path / "recipe.yaml", run / "recipe.yaml", run / "predictions.npz", run / "data.npz"):
            path.write_text(name)
        (job.path / "job.json").write_text(json.dumps(about))
        (run / "metrics.jsonl").write_text("")
        (run / "environment.json").write_text("[]")
        for stage in ("stage-0-a", "stage-1-b", "last", "calibrated"):
            (run / "checkpoints" / f"{stage}.safetensors").write_bytes(bytes(size))
        if ended:
            (run / "result.json").write_text("{}")
        return job

    return make


def test_what_is_kept_of_a_job(records, make_job):
    def names(job, continued):
        return {path.name for path in records.files_of(job, continued)}

    known = {"job.json", "recipe.yaml", "attempts.jsonl"}
    ended = make_job("ended")
    assert names(ended, False) == known | {"metrics.jsonl", "environment.json", "result.json"}
    checkpoints = {"stage-0-a.safetensors", "stage-1-b.safetensors", "last.safetensors"}
    assert names(ended, True) == names(ended, False) | checkpoints | {"data.npz"}
    for candidate, more in (("0", "scores.json"), ("1", "metrics.jsonl")):  # scored, and unfinished
        shutil.copytree(ended.run / "checkpoints", ended.run / "select" / candidate / "checkpoints")
        (ended.run / "select" / candidate / more).write_text("{}")
    kept = {
        str(path.relative_to(ended.run / "select")) for path in records.files_of(ended, True) if "select" in path.parts
    }
    stages = {f"{number}/checkpoints/stage-{stage}.safetensors" for number in "01" for stage in ("0-a", "1-b")}
    written = {"0/scores.json", "1/metrics.jsonl", "1/checkpoints/last.safetensors"}
    assert {name for name in kept if (ended.run / "select" / name).exists()} == stages | written
    assert not any("select" in path.parts for path in records.files_of(ended, False))
    shutil.rmtree(ended.path / "runs")
    assert names(ended, True) == known


def test_tars_are_bounded_and_give_what_is_whole_after_a_cut_off(records, make_job, tmp_path):
    parcel = records.Parcel(tmp_path, count=2, size=160_000)
    jobs = [make_job(f"job{number}", size=14_000) for number in range(6)]
    kept = [parcel.add(job.path, records.files_of(job, True)) for job in jobs]
    assert kept == [True, True, True, True, False, False]
    assert [path.name for path in sorted(tmp_path.glob("*.tar"))] == ["runs-0.tar", "runs-1.tar"]
    assert all(path.stat().st_size <= 160_000 for path in parcel.paths)
    whole = parcel.paths[0].read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:70_000])  # in the middle of the second job's states
    records.unpack(tmp_path / "cut.tar", tmp_path / "home")
    home = JobFolder(tmp_path / "home" / "job0")
    assert home.finished and home.about["name"] == "job0"
    assert len(list(home.path.rglob("*.safetensors"))) == 3 > len(list((tmp_path / "home/job1").rglob("*.safetensors")))
    with pytest.raises(tarfile.ReadError), tarfile.open(tmp_path / "cut.tar", "a"):
        pass
    (tmp_path / "cut.tar").replace(parcel.paths[0])
    small = make_job("small", size=10)
    assert parcel.add(small.path, records.files_of(small, True)), "the next tar takes it"


@pytest.fixture
def copy(write_recipe, monkeypatch):
    """The fingerprint of the images of `write_recipe`, which no process is started for."""
    loaded = load_recipe(write_recipe())
    found = known(loaded, read_splits(loaded, make_plan(loaded).answers["data"])).digests()
    monkeypatch.setattr("ltcore.sweeps.work.prints_of", lambda recipes: [found] * len(recipes))
    return found


def asked_here(jobs, write_recipe, names, **changes):
    """Recipes on the made images of `write_recipe`, each with itself as what it stands for."""
    found = []
    for name in names:
        loaded = load_recipe(write_recipe(name=name, **changes), seed=len(found))
        found.append(jobs.Asked(name, loaded, loaded))
    return found


@pytest.mark.slow
def test_runs_end_as_records_and_go_on_where_the_time_was_over(jobs, records, write_recipe, tmp_path, capsys, copy):
    """The real engine: one run ends, is a record of the data at home, and is not trained again; others come later."""
    training = import_module("gpu.training")
    stage = {"name": "joint", "epochs": 1, "batch_size": 8, "methods": ["focal"], "optimizer": {"lr": 0.05}}
    asked = asked_here(jobs, write_recipe, ["a", "b"], stages=[stage], methods={"focal": {}})
    about = {"commit": "c", "at_once": 1, "data": {"copy": copy, "source": {"train": "at home"}}}
    out = tmp_path / "out"
    notes = records.Notes(out)

    def train(what, seconds):
        until = time.monotonic() + seconds
        return training.train(what, Records([]), tmp_path / "room", until, 1, notes, records.Parcel(out), about)

    assert train(asked, -1) == 0
    said = capsys.readouterr().out
    assert "not begun: a seed 0, b seed 1" in said and not (out / "results.jsonl").exists()
    assert train(asked[:1], 120) == 0
    (line,) = records.read_lines(out / "results.jsonl")
    assert (line["recipe"], line["seed"], line["commit"], line["at_once"]) == ("a", 0, "c", 1)
    assert line["digest"] == digest(asked[0].stands_for) and line["data"] == {"train": "at home"}
    assert 0 <= line["figures"]["top1"] <= 1
    write_record(tmp_path / "records", line)
    mine, every = prepared([(one.name, one.loaded) for one in asked], tmp_path / "room" / "sweep")
    assert training.missing(asked, mine, every, Records([tmp_path / "records"])) == [mine[1]], "a stands in a record"
    write_record(tmp_path / "records", line | {"code": dict.fromkeys(code_of(asked[0].loaded), "changed since")})
    assert training.missing(asked, mine, every, Records([tmp_path / "records"])) == mine
    about["data"]["copy"] = {"train": "others"}
    with pytest.raises(ValueError, match="was not trained on the images that were packed"):
        training.record(mine[0].finished, asked[0], about)
    # A rehearsal stands for nothing: its records are of what was trained.
    short = jobs.Asked("a", asked[0].loaded, None)
    assert training.record(mine[0].finished, short, about)["data"] == copy


def test_what_others_take_over_is_trained_again_where_only_its_record_is_there(jobs, make_job):
    training = import_module("gpu.training")
    first, second, apart = make_job("first", ended=False), make_job("second", after="first"), make_job("apart")
    digests = {"first": ["d"], "second": [], "apart": ["d"]}

    class Known:
        def of(self, name):
            return {0: SimpleNamespace(other_code=lambda code: [])} if digests[name] else {}

    asked = [SimpleNamespace(name=name, seed=0, stands_for=name) for name in digests]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "digest", lambda name: name)
        patch.setattr(training, "code_of", lambda name: {})
        found = training.missing(asked, [first, second, apart], [first, second, apart], Known())
    assert found == [first, second]


@pytest.mark.slow
def test_when_the_time_is_over_runs_write_a_checkpoint_that_goes_home(
    jobs, records, write_recipe, tmp_path, capsys, copy
):
    training = import_module("gpu.training")
    stage = {"name": "joint", "epochs": 5000, "batch_size": 8, "optimizer": {"lr": 0.01}}
    asked = asked_here(jobs, write_recipe, ["long", "later"], stages=[stage])
    out = tmp_path / "out"
    about = {"data": None}

    class Cut(training.Keeping):
        """Says that the time is over as soon as something is trained."""

        def looked(self, engine):
            if any(work.job.share() > 0 for work in engine.running):
                self.until = time.monotonic()
            super().looked(engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Keeping", Cut)
        patch.setattr(training, "GRACE", 60.0)
        until = time.monotonic() + 300
        failed = training.train(
            asked, Records([]), tmp_path / "room", until, 1, records.Notes(out), records.Parcel(out), about
        )
    said = capsys.readouterr().out
    assert failed == 0 and "its checkpoint goes home" in said and "not begun: later seed 1" in said
    assert "unfinished at" in said and not (out / "results.jsonl").exists()
    records.unpack(out / "runs-0.tar", tmp_path / "home" / "jobs")
    (home,) = folders(tmp_path / "home")
    assert (home.run / "checkpoints" / "last.safetensors").is_file() and (home.run / "data.npz").is_file()
    assert home.about["name"] == "long" and not home.finished


def test_who_is_late_is_killed(jobs, records, tmp_path):
    training = import_module("gpu.training")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    keeping = training.Keeping({}, 1, set(), time.monotonic() - 1, records.Notes(tmp_path), None, {})
    engine = SimpleNamespace(stopping=None, running=[SimpleNamespace(process=process)])
    keeping.looked(engine)
    assert engine.stopping == "the end of its time" and process.poll() is None, "it has some seconds"
    keeping.until -= training.GRACE
    keeping.looked(engine)
    assert process.wait(20) == -signal.SIGKILL


def test_what_comes_home_fills_the_cells_of_tables(tmp_path, capsys, monkeypatch):
    """CE of SAFA's table 1 by its digest; a run that is no cell is a record, too."""
    out, results, kept = tmp_path / "out", tmp_path / "results", tmp_path / "kept"
    out.mkdir()
    (tmp_path / "tables").mkdir()
    shutil.copy(ROOT / "tables" / "safa_1.yaml", tmp_path / "tables")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.setattr(import_module("gpu.home"), "ROOT", tmp_path)
    ce = load_recipe(ROOT / "recipes" / "cifar100_lt_ce.yaml")
    lines = []
    for seed, found in ((0, digest(ce)), (1, digest(ce)), (2, "0123456789abcdef")):
        figures = {"top1": 0.38 + seed / 100}
        lines.append({"format": "ltcore run 1", "recipe": "cifar100_lt_ce", "digest": found, "seed": seed})
        lines[-1] |= {"figures": figures, "stages": {}, "code": {}, "data": {}, "cells": []}
    (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / "environment.json").write_text('{"gpu": "a card"}')
    import_module("gpu.home").bring(Namespace(folder=out, results=results, keep=kept))
    said = capsys.readouterr().out
    assert "61.23 / 61.50 ± 0.71 (2)" in said, "SAFA prints errors"
    written = {path.name: json.loads(path.read_text()) for path in results.iterdir()}
    assert written.keys() == {f"{line['digest']}-seed{line['seed']}.json" for line in lines}
    assert all(content["machine"] == {"gpu": "a card"} for content in written.values())
    cells = written[f"{digest(ce)}-seed1.json"]["cells"]
    assert any(cell.startswith("safa_1/") for cell in cells)
    assert written["0123456789abcdef-seed2.json"]["cells"] == []


def test_no_folder_to_bring_from(tmp_path):
    with pytest.raises(SystemExit, match="is no folder"):
        import_module("gpu.home").bring(Namespace(folder=tmp_path / "nowhere"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="the rehearsal makes its environment with uv")
def test_the_rehearsal():
    found = subprocess.run(["uv", "python", "find", "3.12"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("no Python 3.12 is there")
    command = [sys.executable, ROOT / "benchmarks" / "on_a_gpu.py", "--rehearse", "--python", found.stdout.strip()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "the rehearsal passed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
