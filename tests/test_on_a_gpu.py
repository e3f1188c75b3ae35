"""`benchmarks/on_a_gpu.py`: what is trained in which order, what travels, and what survives a cut-off."""

import json
import shutil
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import ltcore
from ltcore.data.prepare import prepare
from ltcore.plan.plan import make_plan
from ltcore.recipe.loading import load_recipe

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


def job(jobs, name, first="", seed=0):
    return jobs.Job(name, seed, Path(name), {}, f"digest of {name}", first or None)


def test_a_job_waits_for_the_first_stage_that_it_shares(jobs):
    ce, ldam, ofa, crt = (job(jobs, n, f) for n, f in [("ce", "x"), ("ldam", "y"), ("ofa", "x"), ("crt", "x")])
    assert jobs.pick([ce, ldam, ofa], [], []) == (ce, None)
    assert jobs.pick([ofa, ldam], [ce], []) == (ldam, None), "OFA waits for CE, and lets LDAM pass"
    assert jobs.pick([ofa], [ce, ldam], []) is None
    assert jobs.pick([ofa, crt], [], [ldam, ce]) == (ofa, ce)
    assert jobs.pick([crt], [ofa], [ce]) == (crt, ce), "nothing to wait for once it is trained"
    assert jobs.pick([ofa, crt], [], []) == (ofa, None), "CE failed: another one trains the stage"
    alone = [job(jobs, "a"), job(jobs, "b")]
    assert jobs.pick(alone[1:], alone[:1], []) == (alone[1], None)


def test_the_recipes_in_order_of_worth(jobs, tmp_path):
    names = ["ce", "ldam_drw", "balanced_softmax", "cdt", "mixup_crt", "safa_ldam_drw", "stg", "glag", "ofa", "mislas"]
    assert jobs.ORDER == names
    made = jobs.jobs_of(names, [0, 1], ROOT, tmp_path, tmp_path / "data.npz", short=False)
    assert [(j.name, j.seed) for j in made] == [(f"cifar100_lt_{name}", seed) for seed in (0, 1) for name in names]
    by_name = dict(zip(names, made, strict=False))
    assert by_name["ofa"].first_stage == by_name["ce"].first_stage
    assert by_name["stg"].first_stage == by_name["mixup_crt"].first_stage != by_name["ce"].first_stage
    assert len({j.digest for j in made}) == len(made)
    assert made[0].first_stage != made[len(names)].first_stage, "seeds share nothing"
    for found in made[: len(names)]:
        recipe, plain = load_recipe(found.file).recipe, load_recipe(ROOT / "recipes" / f"{found.name}.yaml").recipe
        assert {stage.precision for stage in recipe.stages} == {"fp32"}
        assert recipe.data.use == "npz" and recipe.data.imbalance is None and recipe.name == plain.name
        assert (recipe.data.holdout, recipe.data.transform) == (plain.data.holdout, plain.data.transform)
        same = [stage.model_copy(update={"precision": "auto"}) for stage in recipe.stages]
        assert (same, recipe.methods, recipe.backbone) == (plain.stages, plain.methods, plain.backbone)
    elsewhere = jobs.jobs_of(["ce"], [0], ROOT, tmp_path / "b", tmp_path / "b" / "data.npz", short=False)
    assert elsewhere[0].digest == made[0].digest, "where the data lies changes nothing"


def test_the_short_form_of_a_rehearsal_fits_together(jobs, tmp_path):
    short = jobs.jobs_of(jobs.ORDER, [0], ROOT, tmp_path, tmp_path / "data.npz", short=True)
    for found in short:
        loaded = load_recipe(found.file)
        make_plan(loaded, to_run=False)
        assert {(stage.epochs, stage.iterations) for stage in loaded.recipe.stages} <= {(1, None), (None, 3)}


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
    "data", [{"use": "digits_lt"}, {"use": "cifar100_lt", "imbalance": {"kind": "exponential", "factor": 50}}]
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
    assert recipe.data.options["path"] == str(few) and {stage.precision for stage in recipe.stages} == {"fp32"}


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


def test_images_of_an_npz_file_travel_as_they_are(few, tmp_path):
    import_module("gpu.packing").pack_images(few, tmp_path / "data.npz")
    assert (tmp_path / "data.npz").read_bytes() == few.read_bytes()


def test_the_published_files_travel_with_their_tail_cut(tmp_path, monkeypatch):
    labels = torch.arange(200).remainder(2)
    images = torch.arange(200 * 3 * 4).remainder(256).to(torch.uint8).reshape(200, 3, 2, 2)

    def read(loaded, answers):
        assert loaded.recipe.data.options == {"root": str(tmp_path)} and answers["build_data"]
        split = ltcore.ArraySplit(images, labels)
        splits = ltcore.DataSplits(split, split, class_names=("a", "b"), mean=(0.5,) * 3, std=(1.0,) * 3)
        return prepare(splits, loaded.recipe.data)

    monkeypatch.setattr("ltcore.training.data.read_data", read)
    import_module("gpu.packing").pack_images(tmp_path, tmp_path / "data.npz")
    found = np.load(tmp_path / "data.npz")
    assert np.bincount(found["train_labels"]).tolist() == [100, 1] and len(found["test_labels"]) == 200
    assert np.array_equal(found["test_images"], images.permute(0, 2, 3, 1).numpy())


def test_what_is_carried_brings_what_it_needs():
    carried = import_module("gpu.packing").with_needs(["pydantic"])
    assert {"pydantic", "pydantic-core", "typing-extensions"} <= {name.replace("_", "-") for name in carried}
    assert not {"torch", "numpy"} & set(carried)


# -- what survives -----------------------------------------------------------------------------------------------------


def test_lines_survive_a_cut_off(records, tmp_path):
    notes = records.Notes(tmp_path / "out", tmp_path / "room")
    notes.add("results.jsonl", json.dumps({"digest": "a", "figures": {}}))
    notes.add("results.jsonl", json.dumps({"digest": "b", "exit": 1}))
    cut = tmp_path / "out" / "results.jsonl"
    cut.write_text(cut.read_text() + '{"digest": "c", "figu')  # killed while it was written
    notes.add("results.jsonl", json.dumps({"digest": "d", "figures": {}}))
    assert [line["digest"] for line in records.read_lines(cut)] == ["a", "b", "d"]
    committed = tmp_path / "committed"
    committed.mkdir()
    (committed / "e.json").write_text(json.dumps({"digest": "e", "figures": {}}))
    found = records.finished([tmp_path / "out", tmp_path / "room", tmp_path / "nowhere"], committed)
    assert found == {"a", "d", "e"}, "b failed, and is tried again"


def make_run(folder, name, ended=True, size=1000, reused=None):
    """A run's directory with what `files_of` looks for."""
    run = folder / name
    (run / "checkpoints").mkdir(parents=True)
    (run / "recipe.yaml").write_text(name)
    (run / "metrics.jsonl").write_text("{}\n")
    for stage in ("stage-0-a", "stage-1-b", "last", "calibrated"):
        (run / "checkpoints" / f"{stage}.safetensors").write_bytes(bytes(size))
    if ended:
        (run / "result.json").write_text(json.dumps({"reused": reused}))
    return run


def test_what_is_kept_of_a_run(records, tmp_path):
    def names(run, result):
        return {str(path.relative_to(run)) for path in records.files_of(run, result)}

    small = {"recipe.yaml", "metrics.jsonl", "result.json"}
    run = make_run(tmp_path, "ended")
    assert names(run, {"reused": None}) == small | {"checkpoints/stage-0-a.safetensors"}
    assert names(run, {"reused": {"run": "x", "stages": 1}}) == small, "the run that it came from has the stage"
    unfinished = make_run(tmp_path, "unfinished", ended=False)
    checkpoints = {f"checkpoints/{name}.safetensors" for name in ("stage-0-a", "stage-1-b", "last")}
    assert names(unfinished, None) == {"recipe.yaml", "metrics.jsonl"} | checkpoints


def test_tars_are_bounded_and_give_what_is_whole_after_a_cut_off(records, tmp_path):
    parcel = records.Parcel(tmp_path, count=2, size=120_000)
    runs = [make_run(tmp_path / "runs", f"r{number}", size=40_000) for number in range(6)]
    kept = [parcel.add(run, f"job{run.name}", records.files_of(run, {"reused": None})) for run in runs]
    assert kept == [True, True, True, True, False, False]
    assert [path.name for path in sorted(tmp_path.glob("*.tar"))] == ["runs-0.tar", "runs-1.tar"]
    assert all(path.stat().st_size <= 120_000 for path in parcel.paths)
    whole = parcel.paths[0].read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:70_000])  # in the middle of the second run's stage
    records.unpack(tmp_path / "cut.tar", tmp_path / "home")
    stages = list((tmp_path / "home").rglob("stage-0-a.safetensors"))
    assert [path.parents[1].name for path in stages] == ["r0"] and stages[0].stat().st_size == 40_000
    with pytest.raises(tarfile.ReadError), tarfile.open(tmp_path / "cut.tar", "a"):
        pass
    (tmp_path / "cut.tar").replace(parcel.paths[0])
    small = make_run(tmp_path / "runs", "small", size=10)
    assert parcel.add(small, "small", records.files_of(small, {"reused": None})), "the next tar takes it"


def test_when_the_time_is_over_checkpoints_go_home(jobs, records, tmp_path, capsys):
    training = import_module("gpu.training")

    class Sleeping(training.Trainer):
        def start(self, job, source):
            make_run(self.room / "runs" / job.folder / job.name, "one", ended=False)
            process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            self.running[job] = process, time.monotonic()

    todo = [job(jobs, name) for name in ("a", "b", "c")]
    out = tmp_path / "out"
    trainer = Sleeping(todo, {todo[0].digest}, tmp_path, records.Notes(out), records.Parcel(out), {}, 1)
    trainer.run(time.monotonic() + 0.1)
    said = capsys.readouterr().out
    assert "unfinished b seed 0" in said and "its checkpoint goes home" in said and "not begun: c seed 0" in said
    assert "unfinished a" not in said, "it had ended before"
    records.unpack(out / "runs-0.tar", tmp_path / "home")
    assert (tmp_path / "home" / todo[1].folder / "b" / "one" / "checkpoints" / "last.safetensors").is_file()


def test_what_comes_home_stands_beside_the_published_figures(tmp_path, capsys):
    out, results = tmp_path / "out", tmp_path / "results"
    out.mkdir()
    lines = [
        {"name": "cifar100_lt_ce", "seed": seed, "digest": f"{seed:016}", "figures": {"top1": 0.38 + seed / 100}}
        for seed in (0, 1)
    ]
    lines.append({"name": "cifar100_lt_cdt", "seed": 0, "digest": "f" * 16, "exit": 1, "log": "out of memory"})
    (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    import_module("gpu.home").bring(Namespace(folder=out, results=results, keep=tmp_path / "kept"))
    said = capsys.readouterr().out
    assert "failed: cifar100_lt_cdt seed 0: out of memory" in said
    assert "| `cifar100_lt_ce` | 0, 1 | 38.50 (published 38.77) | - | - | - | - | - | SAFA, table 1 |" in said
    written = sorted(path.name for path in results.iterdir())
    assert written == ["cifar100_lt_ce-seed0-00000000.json", "cifar100_lt_ce-seed1-00000000.json"]
    assert json.loads((results / written[1]).read_text()) == lines[1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="the rehearsal makes its environment with uv")
def test_the_rehearsal():
    found = subprocess.run(["uv", "python", "find", "3.12"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("no Python 3.12 is there")
    command = [sys.executable, ROOT / "benchmarks" / "on_a_gpu.py", "--rehearse", "--python", found.stdout.strip()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "the rehearsal passed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
