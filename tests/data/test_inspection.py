"""What is looked for before training: duplicates, broken images, classes without test images."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ltcore.contract.recipe import Data
from ltcore.contract.splits import ArraySplit, DataSplits
from ltcore.data import duplicates, inspection
from ltcore.data.duplicates import find_duplicates
from ltcore.data.image_files import file_split
from ltcore.data.image_list import imagenet_like
from ltcore.data.inspection import find_unreadable, inspect
from ltcore.data.prepare import prepare
from ltcore.errors import DataError

NAMES = ("cat", "dog")


def noise(path, seed, size=(40, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def files(root, split, count=4, suffix="png"):
    """Images 0, 1, ... of a split, cats and dogs by turns."""
    found = [f"{split}/{number}.{suffix}" for number in range(count)]
    for number, file in enumerate(found):
        noise(root / file, (len(split), ord(split[0]), number))
    return file_split(root, found, [number % 2 for number in range(count)])


def prepared(root, suffix="png"):
    splits = {split: files(root, split, suffix=suffix) for split in ("train", "val", "test")}
    return prepare(replace(imagenet_like(splits), class_names=NAMES), Data(use="x"))


def test_duplicates_across_splits_and_classes(tmp_path):
    splits = {split: files(tmp_path, split) for split in ("train", "val", "test")}
    found = find_duplicates(splits, NAMES)
    assert (found.across_splits, found.two_classes, found.notes) == (0, 0, ())
    shutil.copy(tmp_path / "train/0.png", tmp_path / "train/2.png")  # one split, one class: no harm
    assert find_duplicates(splits, NAMES).record() == {"across_splits": 0, "two_classes": 0}
    shutil.copy(tmp_path / "train/1.png", tmp_path / "test/3.png")
    shutil.copy(tmp_path / "train/0.png", tmp_path / "test/2.png")
    found = find_duplicates(splits, NAMES)
    assert found.record() == {"across_splits": 2, "two_classes": 0}
    assert (
        f"2 images of 'test' are byte for byte in an earlier split, too, first {tmp_path}/test/2.png" in found.notes[0]
    )
    shutil.copy(tmp_path / "val/0.png", tmp_path / "val/1.png")
    found = find_duplicates(splits, NAMES)
    assert found.record() == {"across_splits": 2, "two_classes": 2}
    assert "val/0.png in 'cat' and" in found.notes[1] and "val/1.png in 'dog'" in found.notes[1]


def test_files_of_one_size_are_told_apart_by_their_middle_and_the_rest(tmp_path):
    content = bytearray(np.random.default_rng(0).integers(0, 256, 20_000, np.uint8).tobytes())
    for split, changed in (("train", None), ("val", 10_000), ("test", 19_999)):
        (tmp_path / split).mkdir()
        other = content.copy()
        if changed is not None:
            other[changed] ^= 1
        (tmp_path / split / "0.png").write_bytes(other)
    splits = {split: file_split(tmp_path, [f"{split}/0.png"], [0]) for split in ("train", "val", "test")}
    assert find_duplicates(splits, NAMES).across_splits == 0
    (tmp_path / "test/0.png").write_bytes(content)
    assert find_duplicates(splits, NAMES).across_splits == 1
    (tmp_path / "test/0.png").unlink()
    assert find_duplicates(splits, NAMES).across_splits == 0  # a missing image is not our business here


def test_duplicates_in_memory_and_in_tables():
    images = torch.arange(8).view(8, 1, 1, 1).expand(8, 1, 2, 2).to(torch.uint8)
    train, test = ArraySplit(images[:4], torch.tensor([0, 1, 0, 1])), ArraySplit(images[3:6], torch.tensor([0, 1, 0]))
    found = find_duplicates({"train": train, "val": None, "test": test}, NAMES)
    assert found.record() == {"across_splits": 1, "two_classes": 2}
    assert "test image 0, which is train image 3" in found.notes[0]

    class Table:
        def __init__(self, content):
            self.content, self.targets = content, torch.zeros(len(content), dtype=torch.int64)

        def encoded(self, index):
            return self.content[index]

        def name(self, index):
            return f"row {index}"

    assert find_duplicates({"train": Table([b"a", None]), "test": Table([b"b", None, b"a"])}, NAMES).across_splits == 1

    class Unknown:
        targets = torch.zeros(1, dtype=torch.int64)

    assert find_duplicates({"train": Unknown(), "test": Unknown()}, NAMES) is None


def test_how_much_is_compared(tmp_path, monkeypatch):
    data = prepared(tmp_path)
    shutil.copy(tmp_path / "train/1.png", tmp_path / "test/3.png")
    found = inspect(data, Data(use="x"))
    assert found.duplicates.across_splits == 1 and found.notes[-1].startswith("1 images of 'test'")
    monkeypatch.setattr(duplicates, "MOST", 11)
    found = inspect(data, Data(use="x"))
    assert found.duplicates is None and "12 images are more than 11" in found.notes[-1]
    assert inspect(data, Data(use="x", duplicates="look")).duplicates.across_splits == 1
    assert inspect(data, Data(use="x", duplicates="off")).notes == ()


def test_classes_without_test_images_are_named(tmp_path):
    data = prepared(tmp_path)
    assert inspect(data, Data(use="x")).notes == ()
    data = replace(data, test=data.test.subset(torch.tensor([0, 2])))
    (note,) = inspect(data, Data(use="x")).notes
    assert note == "1 of 2 classes have no test image, first 'dog'; no figure covers them"


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_broken_images_are_found_before_training(tmp_path, split, suffix, monkeypatch):
    data = prepared(tmp_path, suffix=suffix)
    assert inspect(data, Data(use="x")).notes == ()
    monkeypatch.setattr(inspection, "SAMPLE", 1)  # that is the first one only
    path = tmp_path / f"{split}/2.{suffix}"
    whole = path.read_bytes()
    for content, said in (
        (b"", "UnidentifiedImageError"),
        (b"<html>404</html>", "UnidentifiedImageError"),
        (whole[: len(whole) // 2], "OSError"),
        (None, "FileNotFoundError"),
    ):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            inspect(data, Data(use="x"))
        message = str(caught.value)
        assert f"1 of 4 {split} images cannot be read" in message and f"{path} ({said}" in message, message
        assert "--set data.broken=skip" in message and "\n" not in message


def test_damage_inside_is_found_in_a_sample_and_by_verify(tmp_path, monkeypatch):
    data = prepared(tmp_path)
    path = tmp_path / "test/2.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(300) + whole[500:])  # head and end are there
    assert [broken.index for broken in find_unreadable(data.test)] == [2]
    monkeypatch.setattr(inspection, "SAMPLE", 1)
    assert find_unreadable(data.test) == []
    with pytest.raises(DataError, match="1 of 4 test images cannot be read"):
        inspect(data, Data(use="x", workers=0), verify=True)
    path.write_bytes(whole)
    train = tmp_path / "train/1.png"
    train.write_bytes(train.read_bytes()[:100])
    assert inspect(data, Data(use="x")).notes == ()  # training finds it in its first epoch
    with pytest.raises(DataError, match="1 of 4 train images"):
        inspect(data, Data(use="x", workers=0), verify=True)


def test_images_in_memory_are_only_compared():
    split = ArraySplit(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    data = prepare(DataSplits(split, split, NAMES, (0.5,), (0.5,)))
    assert inspect(data, Data(use="x"), verify=True).duplicates.record() == {"across_splits": 4, "two_classes": 8}


# -- in a run ----------------------------------------------------------------------------------------------------------

SMALL = "[{name: joint, epochs: 2, batch_size: 4, optimizer: {name: sgd, lr: 0.05}}]"


@pytest.fixture
def photos(tmp_path, write_recipe):
    """A folder of splits and a recipe for it."""
    for split in ("train", "test"):
        for name in NAMES:
            for number in range(4):
                noise(
                    tmp_path / "photos" / split / name / f"{number}.png", (len(split), ord(name[0]), number), (16, 16)
                )
    data = {"use": "image_folder", "options": {"root": str(tmp_path / "photos")}, "workers": 0}
    data["transform"] = {"name": "cifar", "image_size": 16}
    return tmp_path / "photos", write_recipe("r", data=data, stages=SMALL, checkpoint_seconds=0.001)


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def damage(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(200) + whole[400:])
    return whole


def test_what_is_found_stands_in_the_run(photos, cli, tmp_path):
    root, recipe = photos
    shutil.copy(root / "train/cat/1.png", root / "test/cat/1.png")
    result = cli("run", recipe, "--out", tmp_path / "runs")
    assert result.code == 0 and "1 images of 'test' are byte for byte in an earlier split" in result.out
    (written,) = (tmp_path / "runs").rglob("result.json")
    assert json.loads(written.read_text())["duplicates"] == {"across_splits": 1, "two_classes": 0}
    described = cli("data", "describe", recipe, "--json")
    assert json.loads(described.out)["duplicates"] == {"across_splits": 1, "two_classes": 0}
    assert "byte for byte" in cli("data", "describe", recipe).out


def test_a_broken_test_image_ends_the_run_before_it_begins(photos, cli, tmp_path):
    root, recipe = photos
    damage(root / "test/dog/2.png")
    cli("run", recipe, "--out", tmp_path / "runs").is_one_message(2, "r.yaml", "1 of 8 test images", "test/dog/2.png")
    assert not (tmp_path / "runs").exists()
    damage(root / "train/dog/2.png")
    cli("data", "describe", recipe, "--verify").is_one_message(2, "1 of 8 train images", "train/dog/2.png")


def test_a_run_goes_on_without_broken_images(photos, cli, tmp_path, monkeypatch):
    root, recipe = photos
    monkeypatch.setattr(inspection, "SAMPLE", 1)
    whole = damage(root / "test/dog/2.png")
    out = ("--out", tmp_path / "runs")
    cli("run", recipe, *out).is_one_message(2, "test/dog/2.png cannot be decoded", "broken: skip")
    (run,) = (tmp_path / "runs/r").iterdir()
    trained = losses(run)
    assert len(trained) == 2
    skip = ("--resume", "--set", "data.broken=skip")
    training = damage(root / "train/dog/2.png")
    message = cli("run", recipe, *out, *skip)
    message.is_one_message(2, "leaves 1 training images out", str(run), "start anew without --resume")
    (root / "train/dog/2.png").write_bytes(training)
    result = cli("run", recipe, *out, *skip)
    assert result.code == 0 and "1 of 8 test images cannot be decoded and are left out" in result.out, result
    assert list((tmp_path / "runs/r").iterdir()) == [run] and (run / "result.json").exists()
    assert losses(run) == trained and "broken: skip" in (run / "recipe.yaml").read_text()
    assert len(np.load(run / "predictions.npz")["targets"]) == 7
    (root / "test/dog/2.png").write_bytes(whole)
