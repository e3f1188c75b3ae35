import json
import math
import os
import signal
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from PIL import Image

from ltcore.contract.hook import hookimpl
from ltcore.contract.method import Method
from ltcore.contract.recipe import Data
from ltcore.contract.splits import ArraySplit, DataSplits, FileSplit
from ltcore.data import streaming
from ltcore.data.loader import InMemoryLoader
from ltcore.data.prepare import prepare
from ltcore.data.streaming import ArrayImages, StreamingLoader, build_loader, find_broken, worker_count
from ltcore.data.transforms import ImageTransform
from ltcore.errors import DataError, RunError
from ltcore.seeding import generator_for
from ltcore.training.assembly import Assembly
from ltcore.training.data import RunData
from ltcore.training.run import Run

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
COUNTS = (12, 8, 4)


def picture(label, number, width=20, height=16):
    """A smooth picture whose colour tells its class, and whose brightness its number."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 6 + 10 * number, y * 7 + 90 * label, np.full_like(x, 80 * label + number)], 2)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_files(folder, counts=COUNTS, suffix="jpg"):
    """JPEG files of each class, as a FileSplit."""
    names, targets = [], []
    folder.mkdir(parents=True, exist_ok=True)
    for label, count in enumerate(counts):
        for number in range(count):
            names.append(f"{label}_{number}.{suffix}".encode())
            targets.append(label)
            picture(label, number).save(folder / names[-1].decode())
    return FileSplit(folder, np.array(names), torch.tensor(targets))


def make_set(folder, **changed):
    splits = {"train": make_files(folder / "train"), "test": make_files(folder / "test", (3, 3, 3))}
    return DataSplits(**splits, class_names=("a", "b", "c"), mean=MEAN, std=STD, image_size=16, **changed)


def truncate(path):
    """Leave the header whole and cut the body short."""
    path.write_bytes(path.read_bytes()[:-30])
    assert Image.open(path).size == (20, 16)


@pytest.fixture
def loaders():
    """Loaders whose workers end with the test."""
    made = []

    def make(*args, **kwargs):
        made.append(StreamingLoader(*args, **kwargs))
        return made[-1]

    yield make
    for loader in made:
        loader.end_workers()


def epoch(loader, seed=0, start=0):
    indices = torch.randperm(24, generator=torch.Generator().manual_seed(3)).split(5)[start:]
    generators = (generator_for("cpu", seed, step) for step in range(start, start + len(indices)))
    return list(loader.train_batches(indices, generators))


@pytest.mark.parametrize("name", ["imagenet", "autoaugment_cutout"])
def test_batches_do_not_depend_on_the_workers(tmp_path, loaders, name):
    split, transform = make_files(tmp_path), ImageTransform(name, 16, 2, True, 0.4)
    alone, one, two = (loaders(split, transform, MEAN, STD, workers) for workers in (0, 1, 2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    expected = epoch(alone)
    for loader in (one, two):
        for _ in range(2):  # the second time with the workers of the first
            found = epoch(loader)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        evaluated = list(loader.eval_batches(7))
        assert all(torch.equal(a, b) for a, b in zip(evaluated, alone.eval_batches(7), strict=True))
        assert torch.equal(torch.cat(evaluated)[3:9], loader.eval_batch(3, 9))
    assert torch.equal(torch.get_rng_state(), before)
    other = epoch(two, seed=1)
    assert not any(torch.equal(a, b) for a, b in zip(other, expected, strict=True))
    # In the middle of an epoch, as a resumed run begins: the same, step by step.
    rest = epoch(two, start=2)
    assert all(torch.equal(a, b) for a, b in zip(rest, expected[2:], strict=True))


def test_an_abandoned_epoch_leaves_nothing_behind(tmp_path, loaders):
    loader = loaders(make_files(tmp_path), ImageTransform("imagenet", 16, 0, True), MEAN, STD, 2)
    expected = epoch(loader)
    begun = loader.train_batches(torch.arange(24).split(2), (generator_for("cpu", 9, i) for i in range(12)))
    next(begun)
    # Evaluation in the middle of an epoch, as a method may ask for it, does not disturb it either.
    evaluated = torch.cat(list(loader.eval_batches(5)))
    assert len(evaluated) == 24 and next(begun).shape == (2, 3, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(epoch(loader), expected, strict=True))


def test_evaluation_is_the_plain_image(tmp_path):
    split = make_files(tmp_path, suffix="png")
    loader = StreamingLoader(split, ImageTransform("none", 16), MEAN, STD)
    found = torch.cat(list(loader.eval_batches(10)))
    for row in (0, 13, 23):
        pixels = np.asarray(split.open(row), dtype=np.float64)[:, 2:18] / 255  # the middle of 20 columns
        expected = torch.from_numpy((pixels - MEAN) / STD).permute(2, 0, 1)
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last) and len(loader) == 24


@pytest.mark.parametrize("channels", [1, 3])
def test_images_in_memory_with_any_transform(channels):
    images = torch.randint(0, 256, (24, channels, 16, 16), dtype=torch.uint8)
    split = ArraySplit(images, torch.zeros(24, dtype=torch.int64))
    mode = "L" if channels == 1 else "RGB"

    def build(name, size=16, jitter=0.0):
        transform = ImageTransform(name, size, 0, False, jitter, mode)
        return build_loader(split, transform, MEAN[:channels], STD[:channels], 0, torch.device("cpu"))

    plain = build("cifar")
    assert isinstance(plain, InMemoryLoader)
    for other in (build("autoaugment_cutout"), build("none", jitter=0.3)):
        assert isinstance(other, StreamingLoader)
        assert torch.equal(torch.cat(list(other.eval_batches(9))), plain.eval_batch(0, 24))
        assert not torch.equal(torch.cat(epoch(other)), torch.cat(epoch(plain)))
    assert next(build("cifar", 20).eval_batches(4)).shape == (4, channels, 20, 20)
    wrapped = ArrayImages(split).subset(torch.tensor([5, 2]))
    assert len(wrapped) == 2 and wrapped.targets.tolist() == [0, 0]
    assert np.array_equal(np.asarray(wrapped.open(1)).reshape(16, 16, channels), images[2].permute(1, 2, 0).numpy())


def test_a_broken_image_is_named(tmp_path, loaders):
    split = make_files(tmp_path)
    truncate(tmp_path / "1_3.jpg")
    for workers in (0, 2):
        loader = loaders(split, ImageTransform("imagenet", 16), MEAN, STD, workers)
        with pytest.raises(DataError, match=r"1_3.jpg cannot be decoded \(OSError: .*truncated.*broken: skip"):
            epoch(loader)
        with pytest.raises(DataError, match=r"1_3.jpg cannot be decoded"):
            list(loader.eval_batches(4))
    (tmp_path / "1_3.jpg").unlink()
    with pytest.raises(DataError, match=r"1_3.jpg cannot be decoded \(FileNotFoundError"):
        StreamingLoader(split, ImageTransform("none", 16), MEAN, STD).eval_batch(14, 20)


def break_some(folder):
    truncate(folder / "train/0_2.jpg")
    (folder / "train/1_0.jpg").write_bytes(b"")
    (folder / "train/2_3.jpg").write_text("<html>not found</html>")
    (folder / "train/0_11.jpg").unlink()
    truncate(folder / "test/2_0.jpg")


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_left_out_before_anything_is_counted(tmp_path, workers):
    splits = make_set(tmp_path)
    break_some(tmp_path)
    assert [broken.index for broken in find_broken(splits.train, workers)] == [2, 11, 12, 23]
    data = prepare(splits, Data(use="x", broken="skip", workers=workers, holdout=1))
    assert data.class_counts.tolist() == [9, 6, 2] and len(data.val) == 3 and len(data.test) == 8
    assert not set(data.kept.tolist()) & {2, 11, 12, 23}
    for i, kept in enumerate(data.kept.tolist()):
        assert data.train.name(i) == splits.train.name(kept) and data.train.targets[i] == splits.train.targets[kept]
    assert len(data.notes) == 2
    assert data.notes[0].startswith("4 of 24 train images cannot be decoded and are left out: ")
    assert data.notes[0].endswith("; and 1 more") and "0_2.jpg (OSError" in data.notes[0]
    assert data.notes[1].startswith("1 of 9 test images")


def test_a_split_of_broken_images_alone(tmp_path):
    splits = make_set(tmp_path)
    for path in (tmp_path / "test").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no image of the test split can be decoded; the first is .*0_0.jpg"):
        prepare(splits, Data(use="x", broken="skip", workers=0))


def test_worker_count():
    assert worker_count(3) == 3 and worker_count(0) == 0
    assert 1 <= worker_count("auto") <= 8


class Dying:
    """A split whose image 7 ends the process that decodes it."""

    def __init__(self, split):
        self.split, self.targets = split, split.targets

    def __len__(self):
        return len(self.split)

    def open(self, index):
        if index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.split.open(index)

    name = subset = None


def test_a_worker_that_dies_is_one_message(tmp_path, loaders):
    loader = loaders(Dying(make_files(tmp_path)), ImageTransform("none", 16), MEAN, STD, 1)
    with pytest.raises(RunError, match=r"a process that decodes images died \(DataLoader worker .*lower data.workers"):
        list(loader.eval_batches(5))


def test_its_death_is_noticed_wherever_the_reader_happens_to_be(tmp_path, loaders):
    """PyTorch raises in its handler of the signal: here while a reader's own work goes on, between two batches."""
    loader = loaders(make_files(tmp_path), ImageTransform("none", 16), MEAN, STD, 1)

    def told(batches):
        with pytest.raises(RunError, match=r"a process that decodes images died \(DataLoader worker .*lower data"):
            batches.throw(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))

    evaluating = loader.eval_batches(5)
    next(evaluating)
    told(evaluating)
    training = loader.train_batches([torch.arange(5)] * 3, [torch.Generator() for _ in range(3)])
    next(training)
    told(training)
    readable = loader.readable_batches(5)
    next(readable)
    told(readable)


# -- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def streamed(tmp_path, offer_methods, make_run):
    """Run a recipe on files: ``streamed(workers, name=...)`` is the run, ready to ``execute()``."""
    make_set(tmp_path / "files")

    class Pictures(Method):
        @hookimpl
        def build_data(self):
            def read(split, counts):
                names = [f"{label}_{n}.jpg".encode() for label, count in enumerate(counts) for n in range(count)]
                targets = [label for label, count in enumerate(counts) for _ in range(count)]
                return FileSplit(tmp_path / "files" / split, np.array(names), torch.tensor(targets))

            return DataSplits(read("train", COUNTS), read("test", (3, 3, 3)), ("a", "b", "c"), MEAN, STD, image_size=16)

    offer_methods(pictures=Pictures)

    def make(workers=0, name="r", data="", cache="off", **stage):
        trainable = "[classifier]" if cache != "off" else "[backbone, classifier]"
        return make_run(
            name,
            data=f"{{use: pictures, holdout: 1, workers: {workers}{data}}}",
            stages=f"[{{name: joint, epochs: 3, batch_size: 6, cache: '{cache}', trainable: {trainable}, "
            "optimizer: {name: sgd, lr: 0.05, momentum: 0.9}}]",
            checkpoint_seconds=0,
        )

    return make


def figures(result):
    return {key: value for key, value in result.items() if key not in ("stages", "recipe")}


@pytest.mark.parametrize("cache", ["off", "views:2"])
def test_a_run_does_not_depend_on_the_workers(streamed, cache):
    alone, two = (streamed(workers, f"r{workers}", cache=cache) for workers in (0, 2))
    assert figures(alone.execute()) == figures(two.execute())
    assert not active_children()  # or PyTorch would wait for each of them, once the run is collected
    for (name, a), (_, b) in zip(*(run.assembly.model.state_dict().items() for run in (alone, two)), strict=True):
        assert torch.equal(a, b), name
    losses = [json.loads(line)["loss"] for line in (two.directory.path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3 and all(map(math.isfinite, losses))


def test_a_killed_run_goes_on_to_the_same_weights(streamed, monkeypatch):
    whole, killed = streamed(2, "whole"), streamed(2, "killed")
    whole.execute()

    class Killed(BaseException):
        pass

    steps = []

    def step(optimizer, *args, **kwargs):
        steps.append(1)
        if len(steps) == 6:  # in the middle of the second epoch
            raise Killed
        return real(optimizer, *args, **kwargs)

    real = torch.optim.SGD.step
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        with pytest.raises(Killed):
            killed.execute()
    plan, data, device = killed.plan, killed.assembly.data.whole, killed.assembly.device
    resumed = Run(Assembly(plan, RunData(plan, data, device), device), killed.directory, killed.reporter)
    resumed.execute()
    assert resumed.position.stage == 1
    for (name, a), (_, b) in zip(*(run.assembly.model.state_dict().items() for run in (whole, resumed)), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.slow
def test_what_was_left_out_is_told(streamed, tmp_path):
    truncate(tmp_path / "files/train/0_2.jpg")
    run = streamed(0, data=", broken: skip")
    text = "\n".join(run._summary())
    assert "note      1 of 24 train images cannot be decoded and are left out: " in text and "0_2.jpg" in text
    assert run.execute()["class_counts"] == [10, 7, 3]


def test_test_images_reach_no_method(streamed):
    run = streamed()
    assert set(run.assembly.provider._loaders) == {"train", "val"}
    assert all(loader._decoder.split.root.name == "train" for loader in run.assembly.provider._loaders.values())


def test_a_temporary_directory_with_too_long_a_path_is_named_before_workers_wait_for_ever(monkeypatch):
    long = "/tmp/" + "x" * 90
    monkeypatch.setattr(streaming, "get_temp_dir", lambda: long)
    with pytest.raises(RunError, match=rf"{long}, is too long a path.* TMPDIR to one of at most 71 .* 'workers: 0'"):
        streaming.find_broken(range(3), workers=1)
