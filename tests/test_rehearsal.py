"""A rehearsal: what it measures and projects, what it leaves alone, and what it says without data."""

import json
import os
from multiprocessing.util import get_temp_dir
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from ltcore import Method, Options, hookimpl
from ltcore.contract.facts import EncodedSplit, encoded_images
from ltcore.contract.splits import ArraySplit
from ltcore.data.counts import fitted_counts, photographs, published_counts, read_counts
from ltcore.data.digits import DigitsLT
from ltcore.data.loader import InMemoryLoader
from ltcore.data.partial import PartialLoader
from ltcore.data.synthetic import Synthetic, SyntheticOptions
from ltcore.discovery.catalogue import find, load
from ltcore.errors import DataError, RunError
from ltcore.rehearsal.memory import memory_used
from ltcore.rehearsal.projection import Measured, projected_seconds
from ltcore.rehearsal.rehearsal import _rehearsal, rehearse
from ltcore.rehearsal.run import Stopwatch
from ltcore.rehearsal.text import duration, render, size

SHORT = "optimizer: {name: sgd, lr: 0.01}, batch_size: 8"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No data set's folder is known, and what is written by accident is seen."""
    monkeypatch.delenv("LTCORE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    get_temp_dir()  # multiprocessing keeps the first it finds, and a socket's path in it must be short
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))


class TestFacts:
    @pytest.mark.parametrize(
        ("name", "total", "ends", "groups"),
        [("places_lt", 62_500, (4980, 5), (131, 163, 71)), ("imagenet_lt", 115_846, (1280, 5), (385, 479, 136))],
    )
    def test_published_counts_have_the_published_totals(self, name, total, ends, groups):
        counts = np.array(published_counts(name))
        assert (counts.sum(), (counts.max(), counts.min())) == (total, ends)
        many, few = (counts > 100).sum(), (counts < 20).sum()
        assert (many, len(counts) - many - few, few) == groups

    def test_inaturalist_is_a_falling_curve_with_the_published_totals(self):
        counts = fitted_counts(8142, 437_513, 1000, 2)
        assert (len(counts), sum(counts), counts[0], counts[-1], max(counts)) == (8142, 437_513, 1000, 2, 1000)
        assert np.mean(np.diff(counts) > 0) < 0.01

    @pytest.mark.parametrize("data", [DigitsLT(), Synthetic(SyntheticOptions(class_counts=[7, 4], image_size=6))])
    def test_stated_facts_are_those_of_the_data(self, data):
        real, stood_in = data.build_data(), data.facts().splits()
        for split in ("train", "test"):
            wanted, found = getattr(real, split), getattr(stood_in, split)
            assert torch.equal(wanted.targets.bincount(), found.targets.bincount())
            assert wanted.images.shape == found.images.shape and wanted.images.dtype == found.images.dtype
            # The same layout in memory, so that no copy is made that a run does not make.
            assert all(images.permute(0, 2, 3, 1).is_contiguous() for images in (wanted.images, found.images))
        for name in ("mean", "std", "crop_padding", "flip", "imbalance", "transform", "image_size"):
            assert getattr(real, name) == getattr(stood_in, name), name

    def test_photographs_are_decoded(self):
        split = EncodedSplit(encoded_images(50, 30), torch.arange(100) % 3)
        with split.open(97) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (50, 30), "RGB")
        assert len(split.subset(torch.tensor([4, 2]))) == 2

    @pytest.mark.parametrize(
        "text", ["[5, 3]", '{"class_counts": [5, 3]}', '{"counts": [5, 3]}', '{"cat": 5, "dog": 3}']
    )
    def test_counts_of_a_file(self, tmp_path, text):
        (tmp_path / "c.json").write_text(text)
        assert read_counts(tmp_path / "c.json") == (5, 3)

    @pytest.mark.parametrize("text", ["[5, 0]", "[5]", "[5.5, 1]", "[true, 2]", '"5"', "5 3", '{"a": [1, 2]}'])
    def test_a_file_of_no_counts(self, tmp_path, text):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(DataError, match=r"--counts .*c\.json"):
            read_counts(tmp_path / "c.json")


class Clock:
    """A clock that only moves when it is told to."""

    now = 0.0

    def __call__(self):
        return self.now


class TestPasses:
    def loader(self, images=100, workers=0):
        self.clock = Clock()
        split = ArraySplit(torch.zeros(images, 1, 2, 2, dtype=torch.uint8), torch.zeros(images, dtype=torch.int64))
        inner = InMemoryLoader(split, (0.5,), (0.5,))
        return PartialLoader(inner, workers, self.clock)

    def go_through(self, loader, batch_size, seconds_an_image):
        parts = []
        for batch in loader.eval_batches(batch_size):
            self.clock.now += seconds_an_image * len(batch)
            parts.append(batch)
        return torch.cat(parts)

    def test_the_time_of_a_pass_is_projected_to_the_whole_split(self):
        loader = self.loader()
        rows = self.go_through(loader, 40, 0.01)
        assert len(rows) == 4 + 16 + 40
        assert loader.projected == pytest.approx(1.0)
        assert self.clock.now + loader.left_out == pytest.approx(1.0)  # what was spent counts once
        assert not loader.reduced and loader.passes == 1

    def test_a_slow_batch_is_not_computed(self):
        loader = self.loader()
        assert len(self.go_through(loader, 40, 0.5)) == 4 + 16
        assert loader.reduced and loader.projected == pytest.approx(50)
        assert len(self.go_through(loader, 40, 1.0)) == 4  # not even 16

    def test_workers_decode_beside_the_computation(self):
        loader = self.loader(workers=2)
        inner = loader.loader.eval_batch

        def slow(start, stop, crops):
            self.clock.now += 0.01 * (stop - start)
            return inner(start, stop, crops)

        loader.loader.eval_batch = slow
        self.go_through(loader, 16, 0.004)
        assert loader.projected == pytest.approx(0.5)  # 100 images of 10 ms by two processes, not of 4 ms
        loader.workers = 0
        self.go_through(loader, 16, 0.004)
        assert loader.projected == pytest.approx(0.5 + 1.4)

    def test_rows_are_completed_without_two_alike(self):
        loader, rows = self.loader(), torch.rand(7, 3) + 1
        full = loader.completed(rows)
        assert full.shape == (100, 3) and len(full.unique(dim=0)) == 100
        ratio = full / rows[torch.arange(100) % 7]
        assert 0.899 < ratio.min() and ratio.max() < 1.101
        assert torch.equal(full, loader.completed(rows))

    def test_a_single_row_is_completed_too(self):
        full = self.loader().completed(torch.ones(1, 3))
        assert full.shape == (100, 3) and len(full.unique(dim=0)) == 100

    def test_features_that_do_not_fit_are_a_message(self, monkeypatch):
        monkeypatch.setattr("ltcore.data.partial.free_memory", lambda: 2000.0)
        with pytest.raises(RunError, match=r"features of 100 images, \[3\] each"):
            self.loader().completed(torch.rand(7, 3))
        monkeypatch.setattr("ltcore.data.partial.free_memory", lambda: 2400.0)
        assert len(self.loader().completed(torch.rand(7, 3))) == 100


def test_projection_worked_out_by_hand():
    early, late = Measured(0, 8, 0.1, 1.0, False), Measured(29, 8, 0.3, 2.0, False)
    # 9 epochs of 1 + 10 * 0.1, 21 of 2 + 10 * 0.3, and 4 seconds around them.
    assert projected_seconds(300, 10, early, late, 9, 4.0) == pytest.approx(9 * 2 + 21 * 5 + 4)
    assert projected_seconds(5, 10, early, late, 9) == pytest.approx(0.5 * 2)  # half an epoch


@pytest.mark.parametrize(
    ("there", "taken"), [(1, [9.0]), (2, [9.0, 1.0]), (3, [9.0, 9.0, 1.0]), (50, [9.0, 9.0, 1.0, 1.0, 1.0])]
)
def test_slow_first_steps_warm_up_where_there_are_others(there, taken):
    clock = Clock()
    loaders = SimpleNamespace(left_out=0.0, passes=0, projected=0.0, seconds_to_decode=lambda source, rows: 0.0)
    plan = SimpleNamespace(stages=[SimpleNamespace(stage=SimpleNamespace(name="one"))])
    watch = Stopwatch(plan, loaders, None, torch.device("cpu"), 3, lambda text: None, clock, tracing=True)
    watch.stage_entered(0)
    loop = SimpleNamespace(steps_per_epoch=there, total=there, source=None, position=SimpleNamespace(step=0))
    for _ in watch.epochs(loop):
        clock.now += 5  # before the first step
        loop.batches = watch.steps([torch.arange(8)] * there)
        watch.epoch_started(loop)
        for seconds in taken:
            clock.now += seconds
            loop.position.step += 1
            watch.step_ended(loop)
    assert len(loop.batches) == len(taken)
    assert watch._measured == [Measured(0, 8, taken[-1], 5.0, False)]


def test_the_end_takes_as_long_as_it_takes(write_recipe, monkeypatch):
    with _rehearsal(write_recipe(diagnostics='"off"'), (), None, 1, None, lambda text: None) as (run, _, _):
        run.train()
        clock = run._clock = Clock()
        clock.now = 1000.0
        for loader in run.loaders.all:
            loader._clock = clock
        evaluation, real = run._run.evaluation, run._run.evaluation.figures_of

        def slow(*arguments):
            clock.now += 2
            return real(*arguments)

        monkeypatch.setattr(evaluation, "figures_of", slow)
        assert run.finish() == pytest.approx(4)  # before and after calibration


def test_memory_of_a_device_is_that_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 5)
    used = memory_used(torch.device("cpu"))
    assert used.keys() == {"process", "workers"} and used["process"] > 10**7 and used["workers"] == 0
    gpu = memory_used(torch.device("cuda"))
    assert (gpu["device_allocated"], gpu["device_reserved"]) == (3, 5)


def test_units():
    assert [duration(s) for s in (0.5, 90, 600, 7200, 864_000)] == ["0.5 s", "90 s", "10.0 min", "2.0 h", "10.0 days"]
    assert [size(n) for n in (1_500_000, 2_500_000_000)] == ["1.5 MB", "2.50 GB"]


SEVERAL_STAGES = {
    "methods": "{ofa: {}, tau_norm: {}}",
    "stages": f"""
  - {{name: one, epochs: 6, {SHORT}}}
  - {{name: two, iterations: 9, methods: [ofa], trainable: [classifier], cache: eval, {SHORT}}}
  - {{name: three, epochs: 2, trainable: [classifier], cache: 'views:2', {SHORT}}}""",
    "calibrate": "[tau_norm]",
    "diagnostics": "epoch",
    "data": "{use: synthetic, options: {class_counts: [60, 30, 20, 9], image_size: 8}, holdout: 5}",
}


def test_every_stage_is_rehearsed_and_nothing_written(write_recipe, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a run would make its directory
    path = write_recipe(**SEVERAL_STAGES)
    before = set(tmp_path.rglob("*"))
    found = json.loads(cli("rehearse", path, "--steps", "2", "--json").out)
    left = {path for path in set(tmp_path.rglob("*")) - before if "torchinductor" not in path.parts[-1]}
    assert not left  # but for PyTorch's own folder
    assert [stage["name"] for stage in found["stages"]] == ["one", "two", "three"]
    # 119 images, 5 held out of each class; 99 are 13 batches of 8, the last of 3.
    assert found["data"] | {"train": 99, "validation": 20, "test": 80, "classes": 4} == found["data"]
    assert (found["stages"][0]["steps"], found["stages"][0]["late"]["epoch"]) == (6 * 13, 5)
    assert found["stages"][2]["late"]["epoch"] == 1
    ends = found["end_seconds"] + sum(stage["seconds"] for stage in found["stages"])
    assert found["seconds"] == pytest.approx(ends) and found["estimate"] is True
    for stage in found["stages"]:
        for measured in (stage["early"], stage["late"]):
            assert 0 < measured["seconds_per_step"]
            per_second = stage["batch_rows"] / measured["seconds_per_step"]
            assert measured["images_per_second"] == pytest.approx(per_second, rel=0.2)
        per_epoch = stage["steps"] / stage["epochs"]
        least = stage["steps"] * min(stage[when]["seconds_per_step"] for when in ("early", "late"))
        assert stage["seconds"] >= 0.999 * least and per_epoch >= 1
    # The third leaves the backbone alone: the pooled features of its images are known, its views are a cache's.
    assert [stage["passes"] > 0 for stage in found["stages"]] == [True, True, False]
    assert found["memory"]["process"] > found["checkpoint_bytes"] > 4 * found["parameters"]


class LateOptions(Options):
    start_epoch: int = 3
    option: str = "works"


class Late(Method[LateOptions]):
    """Says when it is called; fails late where it is told to."""

    seen: ClassVar[list] = []

    @hookimpl
    def adjust_logits(self, logits, targets, context):
        active = context.epoch >= self.options.start_epoch
        self.seen.append((context.epoch, active, float(context.progress)))
        if active and self.options.option == "fails":
            raise ValueError("late")
        if active and self.options.option == "memory":
            raise MemoryError
        return logits

    @hookimpl
    def on_stage_start(self, context):
        features = context.training_features()
        assert len(features) == len(context.training_targets) and len(features.unique(dim=0)) == len(features)


def late(write_recipe, offer_methods, option="works"):
    offer_methods(late=Late)
    Late.seen = []
    stages = f"[{{name: joint, epochs: 10, methods: [late], {SHORT}}}]"
    return write_recipe(methods=f"{{late: {{options: {{option: {option}}}}}}}", stages=stages)


def test_a_method_that_starts_later_is_measured_active(write_recipe, offer_methods):
    found = rehearse(late(write_recipe, offer_methods), steps=3)
    assert {(epoch, active) for epoch, active, _ in Late.seen} == {(0, False), (9, True)}
    assert len(Late.seen) == 2 * (2 + 3)  # two epochs of a warm-up and three steps
    assert Late.seen[-1][2] > 0.9
    (stage,) = found["stages"]
    assert (stage["early_epochs"], stage["change_stated"]) == (3, True)
    early, last, around = stage["early"], stage["late"], stage["around_seconds"]
    per_epoch = stage["steps"] / 10
    wanted = around + sum(
        epochs * (per_epoch * one["seconds_per_step"] + one["seconds_outside_steps"])
        for epochs, one in ((3, early), (7, last))
    )
    assert stage["seconds"] - stage["checkpoints"] * stage["checkpoint_seconds"] == pytest.approx(wanted)
    assert "of 10 epochs 3 as the first, the rest as epoch 10 (where a method starts)" in render(found)


@pytest.mark.parametrize(
    ("option", "said"), [("fails", "'late' (ltcore-tests 0.0) failed in adjust_logits"), ("memory", "MemoryError")]
)
def test_what_a_method_raises_surfaces_as_in_a_run(write_recipe, offer_methods, cli, tmp_path, option, said):
    path = late(write_recipe, offer_methods, option)
    cli("rehearse", path, "--steps", "1").is_one_message(1, said)
    assert not list((tmp_path / "temporary").iterdir())


def test_no_memory_in_core_is_a_message(write_recipe, monkeypatch, cli):
    def none_left(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("ltcore.training.step.StepForward.__call__", none_left)
    cli("rehearse", write_recipe()).is_one_message(1, "stage 'joint': memory has run out", "batch_size")


TINY_STAGE = "[{name: joint, iterations: 3, batch_size: 4, optimizer: {name: sgd, lr: 0.01}}]"
SMALL_IMAGES = "transform: {image_size: 16}, workers: 0"


def test_places_without_its_files_or_weights(write_recipe, cli):
    path = write_recipe(
        data=f"{{use: places_lt, options: {{root: '${{env:LTCORE_DATA}}/places'}}, {SMALL_IMAGES}}}",
        backbone="{use: timm, options: {model: resnet10t, weights: absent.safetensors}}",
        stages=TINY_STAGE,
        diagnostics='"off"',
        eval_batch_size="16",
    )
    result = cli("rehearse", path, "--steps", "1")
    assert (result.code, result.err) == (0, "")
    for text in (
        "365 classes of 4980 to 5 images, 62,500 to train on, 7,300 to validate, 36,500 to test on, 16 pixels",
        "JPEGs of 256 x 256 pixels",
        "backbone.options.weights: no weights are fetched or read",
        "projected time",
        "memory, process",
    ):
        assert text in result.out
    assert "LTCORE_DATA" not in os.environ
    cli("run", path).is_one_message(2, "LTCORE_DATA")


def test_approximate_counts_are_said_to_be_and_can_be_replaced(write_recipe, tmp_path):
    from ltcore.data.inaturalist import INaturalist2018

    facts = INaturalist2018().facts()
    assert "curve" in facts.approximate and facts.with_counts((3, 2)).approximate == ""
    (tmp_path / "c.json").write_text("[30, 12, 4]")
    path = write_recipe(
        data=f"{{use: inaturalist2018, {SMALL_IMAGES}}}", stages=TINY_STAGE, diagnostics='"off"', eval_batch_size="16"
    )
    found = rehearse(path, steps=1, counts=tmp_path / "c.json")
    assert (found["data"]["classes"], found["data"]["train"]) == (3, 46)
    assert not any("curve" in note for note in found["notes"])


def test_a_set_that_states_nothing_needs_its_data_or_counts(write_recipe, tmp_path, cli):
    path = write_recipe(data=f"{{use: image_folder, options: {{root: absent}}, {SMALL_IMAGES}}}", stages=TINY_STAGE)
    cli("rehearse", path).is_one_message(2, "absent", "--counts FILE")
    (tmp_path / "c.json").write_text('{"cat": 20, "dog": 7}')
    result = cli("rehearse", path, "--steps", "1", "--counts", tmp_path / "c.json")
    assert result.code == 0 and "2 classes of 20 to 7 images" in result.out and "are assumed" in result.out
    assumed = photographs((20, 7))
    assert assumed.test == 5 and "files of {} x {} pixels".format(*assumed.stored) in assumed.approximate


def test_data_that_is_there_is_read_where_nothing_is_stated(write_recipe, offer_methods):
    class Unstated(Synthetic):
        def facts(self):
            return None

    offer_methods(unstated=Unstated)
    found = rehearse(write_recipe(data="{use: unstated, options: {class_counts: [9, 5], image_size: 8}}"), steps=1)
    assert found["data"]["train"] == 14 and any("images were read" in note for note in found["notes"])


def test_selection_counts_every_network(write_recipe):
    path = write_recipe(
        methods="{cdt: {}}",
        stages=f"[{{name: joint, epochs: 1, methods: [cdt], {SHORT}}}]",
        select="{options: {methods.cdt.options.gamma: [0.1, 0.2, 0.3]}, holdout: 2}",
    )
    found = rehearse(path, steps=1)
    one = found["end_seconds"] + found["stages"][0]["seconds"]
    assert found["networks"] == 4 and found["seconds"] == pytest.approx(4 * one)  # the last trains on all images


def test_streamed_images_are_decoded_by_workers(write_recipe, tmp_path):
    (tmp_path / "c.json").write_text("[30, 12]")
    data = "{use: image_folder, options: {root: absent}, transform: {image_size: 8}, workers: 1}"
    found = rehearse(write_recipe(data=data, stages=TINY_STAGE), steps=1, counts=tmp_path / "c.json")
    assert found["workers"] == 1 and found["stages"][0]["early"]["seconds_per_step"] > 0


def test_a_number_of_steps_that_is_none_is_refused(write_recipe, cli):
    cli("rehearse", write_recipe(), "--steps", "0").is_one_message(2, "--steps", "'0' is no whole number above 0")


def test_published_sets_state_facts():
    for name in ("digits_lt", "fashion_mnist_lt", "cifar10_lt", "cifar100_lt", "tiny_imagenet_lt", "imagenet_lt"):
        facts = load(find(name))().facts()
        assert facts is not None and len(facts.mean) == len(facts.std), name
    tiny = load(find("tiny_imagenet_lt"))().facts()
    assert (len(tiny.class_counts), sum(tiny.class_counts), tiny.image_size, tiny.stored) == (
        200,
        100_000,
        64,
        (64, 64),
    )
