"""The same images through a folder a class, and through tables, give the same run to the bit."""

import csv
import json
import random

import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import equal

import ltcore

CLASSES = {"lynx": 14, "ant": 30, "Owl": 9, "moth": 6}
#: What says when and where, and not what was trained.
ABOUT = {"data", "data_fingerprint", "stages"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A long tail of images in class folders, some deeper, each of a burst of two; and their paths by class."""
    root, drawn = tmp_path_factory.mktemp("images"), random.Random(0)
    found = []
    for name, count in CLASSES.items():
        for number in range(count):
            below = "more/" if number % 5 == 0 else ""
            file = f"{name}/{below}burst{number // 2}_{name}_{number}.png"
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            colours = bytes(drawn.randrange(256) for _ in range(8 * 8 * 3))
            Image.frombytes("RGB", (8, 8), colours).save(root / file)
            found.append((file, name))
    return root, found


def write_table(path, header, rows):
    random.Random(1).shuffle(rows)  # in no order
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def train(folder, name, use, options):
    recipe = {
        "name": "same",
        "data": {"use": use, "options": options, "transform": {"name": "cifar", "image_size": 8}, "workers": 0},
        "backbone": {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        "stages": [{"name": "s", "epochs": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.05}}],
    }
    (folder / f"{name}.yaml").write_text(json.dumps(recipe))
    return ltcore.run(folder / f"{name}.yaml", out=folder / name)


def assert_same(first, second):
    weights, others = (load_file(run.path / "checkpoints" / "calibrated.safetensors") for run in (first, second))
    assert weights.keys() == others.keys() and all(equal(weights[key], others[key]) for key in weights)
    plain, other = ({key: value for key, value in run.result.items() if key not in ABOUT} for run in (first, second))
    assert plain == other
    for one, two in zip(first.result["stages"], second.result["stages"], strict=True):
        assert (one["test"], one.get("validation"), one["diagnostics"]) == (
            two["test"],
            two.get("validation"),
            two["diagnostics"],
        )
    # The splits are the same images in the same order, too.
    assert first.result["data_fingerprint"] == second.result["data_fingerprint"]
    assert list(first.image_names) == list(second.image_names)
    assert (first.path / "predictions.csv").read_bytes() == (second.path / "predictions.csv").read_bytes()


FRACTIONS = {"test_fraction": 0.25, "val_fraction": 0.2, "val_min": 5}


@pytest.fixture(scope="module")
def by_folder(images, tmp_path_factory):
    root, _ = images
    return train(tmp_path_factory.mktemp("folder"), "folder", "image_folder", {"root": str(root), **FRACTIONS})


def test_text_labels_split_by_fraction(images, by_folder, tmp_path):
    root, found = images
    write_table(tmp_path / "t.csv", ["file", "label"], [list(row) for row in found])
    options = {"root": str(root), "table": str(tmp_path / "t.csv"), **FRACTIONS}
    assert_same(by_folder, train(tmp_path, "table", "image_table", options))


def test_a_column_a_class_in_any_order(images, by_folder, tmp_path):
    root, found = images
    names = sorted(CLASSES, reverse=True)
    rows = [[file, *(int(name == own) for name in names)] for file, own in found]
    write_table(tmp_path / "t.csv", ["file", *names], rows)
    options = {"root": str(root), "table": str(tmp_path / "t.csv"), **FRACTIONS}
    assert_same(by_folder, train(tmp_path, "table", "image_table", options))


def test_a_column_of_splits(images, by_folder, tmp_path):
    root, found = images
    data = by_folder.read_data()
    split_of = {
        split.name(number).removeprefix(f"{root}/"): name
        for name, split in (("train", data.train), ("valid", data.val), ("test", data.test))
        for number in range(len(split))
    }
    assert len(split_of) == len(found) and len(set(split_of.values())) == 3
    rows = [[split_of[file], name, file] for file, name in found]
    write_table(tmp_path / "t.csv", ["split", "class", "image"], rows)
    options = {"root": str(root), "table": str(tmp_path / "t.csv")}
    assert_same(by_folder, train(tmp_path, "table", "image_table", options))


def test_groups(images, tmp_path):
    root, found = images
    options = {"root": str(root), **FRACTIONS}
    first = train(tmp_path, "folder", "image_folder", {**options, "group": "(burst[0-9]+_[^/_]+)"})
    rows = [[file, name, "_".join(file.rpartition("/")[2].split("_")[:2])] for file, name in found]
    write_table(tmp_path / "t.csv", ["file", "label", "burst"], rows)
    options |= {"table": str(tmp_path / "t.csv"), "group": "burst"}
    second = train(tmp_path, "table", "image_table", options)
    assert_same(first, second)
    # The groups did matter: no burst is in two splits.
    data = second.read_data()
    bursts = [
        {split.name(number).rpartition("/")[2].rpartition("_")[0] for number in range(len(split))}
        for split in (data.train, data.val, data.test)
    ]
    assert not (bursts[0] & bursts[1] or bursts[0] & bursts[2] or bursts[1] & bursts[2])
