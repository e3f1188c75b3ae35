"""Cached features in files: the same bits as in memory, known by what they depend on, shared between runs."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ltcore.errors import RunError
from ltcore.files import mapped
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.seeding import generator_for
from ltcore.sweeps.folder import folders
from ltcore.training import cache as cache_module
from ltcore.training.cache import FeatureCache
from ltcore.training.cache_files import CacheFiles, key_of
from ltcore.training.execute import execute

ROOT = Path(__file__).parents[1]
MOVING = (
    "{use: synthetic, options: {class_counts: [24, 16, 8, 4], image_size: 8, test_per_class: 4}, "
    "transform: {crop_padding: 1, flip: true}}"
)
COMMON = {"batch_size": 16, "optimizer": {"lr": 0.05}}
ONE = {"name": "one", "epochs": 1, **COMMON}
TWO = {"name": "two", "epochs": 2, "trainable": ["classifier"], "cache": "views:2", **COMMON}


@pytest.fixture
def run(make_run):
    """A run that stands before a stage with a cache; its norms have statistics of their own."""
    run = make_run(data=MOVING, stages=[ONE, TWO])
    with torch.no_grad():
        for step in range(3):
            run.assembly.model(run.assembly.data.loaders["train"].eval_batch(16 * step, 16 * step + 16))
    return run


@pytest.fixture
def no_room(monkeypatch):
    """Whatever is cached is too large for memory."""
    monkeypatch.setattr(cache_module, "SHARE", 0.0)


def filled(run, files=None, tap="pooled", views=2, precision="fp32", key="k"):
    loader = run.assembly.data.loaders["train"]
    return FeatureCache(run.assembly.model, loader, tap, views, 20, (0, "cache", "s"), precision, files, lambda: key)


def batch(cache):
    return cache.train_batch(torch.tensor([5, 0, 5, 47, 31]), generator_for("cpu", 1))


@pytest.fixture
def passes(run, monkeypatch):
    """Counts the batches that the backbone is asked for."""
    seen, forward = [], run.assembly.model.backbone.forward_maps
    monkeypatch.setattr(run.assembly.model.backbone, "forward_maps", lambda x: seen.append(len(x)) or forward(x))
    return seen


# -- in memory and in a file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tap", ["maps", "pooled"])
@pytest.mark.parametrize("views", [None, 2])
def test_a_file_holds_the_bits_that_memory_does(run, tmp_path, no_room, tap, views):
    memory = filled(run, None, tap, views)
    file = filled(run, CacheFiles(tmp_path / "f"), tap, views)
    assert isinstance(file._rows.untyped_storage().nbytes(), int) and list((tmp_path / "f").glob("k.features"))
    found, expected = batch(file), batch(memory)
    assert torch.equal(found, expected) and found.stride() == expected.stride() and found.dtype == torch.float32
    if tap == "maps":
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert not memory.notes and "k.features" in file.notes[0]


def test_where_memory_has_room_nothing_is_written(run, tmp_path):
    filled(run, CacheFiles(tmp_path / "f"))
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(("precision", "size", "within"), [("fp16", 2, 2**-11), ("bf16", 2, 2**-8), ("fp32", 4, 0)])
def test_precision_is_as_fine_and_as_large_as_it_says(run, tmp_path, no_room, precision, size, within):
    exact = batch(filled(run))
    for files in (None, CacheFiles(tmp_path / "f")):
        cache = filled(run, files, precision=precision)
        found = batch(cache)
        assert found.dtype == torch.float32 and cache._rows.element_size() == size
        assert ((found - exact).abs() <= within * exact.abs() + 1e-7).all()
        assert within == 0 or not torch.equal(found, exact)
    written = (tmp_path / "f" / "k.features").stat().st_size
    assert written == 4096 + size * 2 * 52 * exact.shape[1]


def test_a_feature_beyond_fp16_is_a_message(run, make_run):
    with torch.no_grad():
        next(m for m in run.assembly.model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)).weight.fill_(1e9)
    with pytest.raises(RunError, match="cache_precision fp16 holds numbers up to 65504"):
        filled(run, precision="fp16")
    filled(run, precision="bf16")


def test_a_rehearsal_writes_no_file_and_begins_again_where_rows_are_few(run, tmp_path, monkeypatch, no_room):
    from ltcore.data.partial import PartialLoader

    run.assembly.data.loaders["train"] = PartialLoader(run.assembly.data.loaders["train"], 0)
    for views in (None, 2):
        cache = filled(run, CacheFiles(tmp_path / "f"), "maps", views)
        assert len(cache._rows) == (views or 1) * (4 + 16 + 20) and not (tmp_path / "f").exists()
        assert batch(cache).shape[0] == 5


# -- what is there already ---------------------------------------------------------------------------------------------


def test_a_whole_file_is_taken_and_a_damaged_one_computed_again(run, tmp_path, no_room, passes):
    files = CacheFiles(tmp_path / "f")
    path = tmp_path / "f" / "k.features"
    expected = batch(filled(run, files))
    once = len(passes)
    again = filled(run, files)
    assert torch.equal(batch(again), expected) and len(passes) == once and f"found in {path}" in again.notes[0]
    content = path.read_bytes()
    damages = {
        "checksum": content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        "bytes of rows": content[:-4],
        "bytes of rows and not": content + b"\0",
        "beginning is not readable": b"\0" * 4096 + content[4096:],
        "something else": content.replace(b'"key": "k"', b'"key": "l"', 1),
        "rows and not 104": content.replace(b'"shape": [104', b'"shape": [103', 1),
        "not readable": b"",
    }
    for number, (said, damaged) in enumerate(damages.items(), 2):
        path.write_bytes(damaged)
        cache = filled(run, files)
        assert torch.equal(batch(cache), expected) and len(passes) == number * once
        assert f"{path} is damaged" in cache.notes[0] and said in cache.notes[0]
        assert path.read_bytes() == content


def test_what_a_killed_run_leaves_does_not_grow(run, tmp_path, no_room):
    files = CacheFiles(tmp_path / "f")
    for _ in range(2):
        if not (child := os.fork()):
            files.own.mkdir(exist_ok=True)
            with mapped.written(files.own / "k.features", torch.float32) as file:
                file.add(torch.ones(4, 2))
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
    assert [path.suffix for path in files.own.iterdir()] == [".tmp"], "each removes what the one before has left"
    (files.own / "older.features").write_bytes(b"of a stage before")
    filled(run, files)
    assert [path.name for path in files.own.iterdir()] == ["k.features"]
    files.clear()
    assert not files.own.exists()


def test_a_full_disk_is_known_before_anything_is_computed(run, tmp_path, no_room, monkeypatch, passes):
    monkeypatch.setattr("ltcore.files.mapped.shutil.disk_usage", lambda _: type("U", (), {"free": 1000})())
    with pytest.raises(RunError, match=r"would have 0\.0 GB, and 0\.0 GB are free there; .*cache_precision"):
        filled(run, CacheFiles(tmp_path / "f"))
    assert len(passes) == 1, "the first batch says how large a row is"


def test_a_run_with_files_ends_as_one_without_and_keeps_none(make_run, monkeypatch):
    whole = []
    for share in (0.25, 0.0):
        monkeypatch.setattr(cache_module, "SHARE", share)
        seen, run = [], make_run(data=MOVING, stages=[ONE, TWO])
        monkeypatch.setattr(
            run.reporter,
            "note",
            lambda text, seen=seen, path=run.directory.features: seen.append((text, path.exists())),
        )
        run.execute()
        assert not run.directory.features.exists()
        whole.append([value.clone() for value in run.assembly.model.state_dict().values()])
        lies = [there for text, there in seen if "features of the frozen part lie in" in text]
        assert lies == ([] if share else [True])
    assert all(torch.equal(*pair) for pair in zip(*whole, strict=True))


# -- what a file is known by -------------------------------------------------------------------------------------------


def test_a_key_is_what_the_numbers_depend_on(make_run):
    def key(tap="pooled", stages=(ONE, TWO), change=None, **parts):
        run = make_run(**{"data": MOVING, "stages": list(stages), **parts})
        run.assembly.enter("two", 1)
        if change:
            change(run.assembly)
        return key_of(run.assembly, 1, tap)

    def other_weights(assembly):
        with torch.no_grad():
            next(assembly.model.backbone.parameters())[0] += 1

    def other_statistics(assembly):
        next(m for m in assembly.model.backbone.modules() if hasattr(m, "running_mean")).running_mean[0] += 1

    def other_classifier(assembly):
        with torch.no_grad():
            assembly.model.classifier.weight += 1

    plain = key()
    same = [
        key(),
        key(change=other_classifier),
        key(stages=[ONE, {**TWO, "epochs": 7, "batch_size": 4, "optimizer": {"lr": 1.0}}]),
        key(methods={"focal": {}}, stages=[ONE, {**TWO, "methods": ["focal"]}]),
    ]
    assert set(same) == {plain}
    others = [
        key("maps"),
        key(change=other_weights),
        key(change=other_statistics),
        key(seed=1),
        key(stages=[ONE, {**TWO, "cache": "views:3"}]),
        key(stages=[ONE, {**TWO, "cache": "eval"}]),
        key(stages=[ONE, {**TWO, "name": "three"}]),
        key(stages=[ONE, {**TWO, "cache_precision": "fp16"}]),
        key(data=MOVING.replace("crop_padding: 1", "crop_padding: 2")),
        key(data=MOVING.replace("24", "23")),
        key(eval_batch_size=100),
    ]
    assert len({plain, *others}) == len(others) + 1
    assert key(stages=[ONE, {**TWO, "cache": "eval"}]) == key(stages=[ONE, {**TWO, "cache": "eval", "name": "three"}])


def test_precision_is_part_of_what_an_experiment_is_only_where_it_is_named(write_recipe):
    from ltcore.recipe.identity import digest, settings

    plain, named, half = (
        load_recipe(write_recipe(stages=[ONE, {**TWO, **more}]))
        for more in ({}, {"cache_precision": "fp32"}, {"cache_precision": "fp16"})
    )
    assert digest(plain) == digest(named) != digest(half)
    assert "stages.two.cache_precision" not in settings(plain)


# -- shared ------------------------------------------------------------------------------------------------------------


def trained(path, out, source=None, features=None):
    """A run of a recipe in this process: its directory, and what it has told."""
    stream = io.StringIO()
    _, found = execute(load_recipe(path), out, False, Reporter(stream), source, features=features)
    return found, stream.getvalue().replace("\n", " ")


def predictions(run):
    with np.load(run / "predictions.npz") as found:
        return {name: found[name] for name in found.files}


def test_two_runs_behind_the_same_first_stage_fill_the_cache_once(write_recipe, tmp_path):
    arms = {
        "plain": {},
        "focal": {"methods": {"focal": {}}, "stages": [ONE, {**TWO, "methods": ["focal"]}]},
        "long": {"stages": [ONE, {**TWO, "epochs": 4}]},
    }
    paths = {name: write_recipe(name, **{"data": MOVING, "stages": [ONE, TWO], **arm}) for name, arm in arms.items()}
    first, _ = trained(write_recipe("first", data=MOVING, stages=[ONE]), tmp_path / "runs")
    shared = tmp_path / "features"
    told = {}
    for name, path in paths.items():
        run, told[name] = trained(path, tmp_path / "together", first, shared)
        alone, said = trained(path, tmp_path / "alone")
        assert "features of the frozen part" not in said
        for key, value in predictions(alone).items():
            assert np.array_equal(value, predictions(run)[key]), (name, key)
        assert not (run / "features").exists()
    assert "lie in" in told["plain"] and "found in" in told["focal"] and "found in" in told["long"]
    assert len(list(shared.glob("*.features"))) == 1


SWEEP = ("checkpoint_seconds=600", "stages.representation.epochs=2", "diagnostics=off")


@pytest.mark.slow
def test_jobs_of_a_sweep_at_the_same_time_fill_the_cache_once(tmp_path):
    """Both wait for the first stage, begin together, and one of them waits for the features of the other."""
    command = [sys.executable, "-m", "ltcore", "sweep", "recipes/digits_lt_ofa.yaml", "--out", str(tmp_path / "work")]
    command += ["--grid", "methods.ofa.options.head_ratio=0.2,0.8", "--jobs", "2", "--threads", "1"]
    command += [word for text in SWEEP for word in ("--set", text)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    jobs = list(folders(tmp_path / "work"))
    arms = [job for job in jobs if job.about["after"]]
    assert len(jobs) == 3 and len(arms) == 2
    said = sorted(word for job in arms for word in ("lie in", "found in") if word in (job.path / "log.txt").read_text())
    assert said == ["found in", "lie in"]
    assert not list((tmp_path / "work").rglob("*.features")), "the last of them has removed it"
    for job in arms:
        words = ["run", str(job.path / "recipe.yaml"), "--out", str(tmp_path / "alone"), "--threads", "1"]
        subprocess.run([sys.executable, "-m", "ltcore", *words], cwd=ROOT, check=True, capture_output=True)
        alone = max((tmp_path / "alone").glob("*/*/result.json"), key=lambda path: path.stat().st_mtime_ns).parent
        for name, value in predictions(alone).items():
            assert np.array_equal(value, predictions(job.finished)[name]), name
        assert "features" not in json.loads((job.finished / "result.json").read_text())


# -- on a GPU ----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("tap", ["maps", "pooled"])
def test_batches_out_of_a_mapped_file_are_those_on_the_device_and_wait_for_nothing(run, tmp_path, no_room, tap):
    from ltcore.data.loader import InMemoryLoader

    data = run.assembly.data.whole
    model = run.assembly.model.cuda()
    loader = InMemoryLoader(data.train, data.mean, data.std, 1, True, "cuda")
    arguments = (model, loader, tap, 2, 20, (0, "cache", "s"), "fp32")
    memory, file = FeatureCache(*arguments), FeatureCache(*arguments, CacheFiles(tmp_path / "f"), lambda: "k")
    assert memory._rows.is_cuda and not file._rows.is_cuda
    indices = torch.tensor([5, 0, 5, 47, 31])
    expected = memory.train_batch(indices, generator_for("cuda", 1))
    generators = [generator_for("cuda", 1) for _ in range(3)]
    file.train_batch(indices, generators[0])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [file.train_batch(indices, generator) for generator in generators[1:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(each, expected) and each.is_cuda for each in found)
