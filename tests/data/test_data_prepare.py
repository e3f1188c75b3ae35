import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltcore.contract.figures import shot_group
from ltcore.contract.imbalance import Imbalance
from ltcore.contract.recipe import Data
from ltcore.contract.splits import ArraySplit, DataSplits, FileSplit
from ltcore.data.describe import describe, render
from ltcore.data.histogram import COLORS, HEIGHT, LEFT, TOP, WIDTH, _step, histogram
from ltcore.data.prepare import prepare
from ltcore.errors import DataError


def split(targets, channels=1, size=4):
    """Images whose first pixel is their index, so that they can be told apart."""
    images = torch.zeros(len(targets), channels, size, size, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(targets))
    return ArraySplit(images, torch.as_tensor(targets, dtype=torch.int64))


def cut(splits, imbalance=None, **asked):
    return prepare(splits, Data(use="x", imbalance=imbalance, **asked))


def data_set(**changed):
    splits = DataSplits(split([0, 1, 2] * 20), split([0, 1, 2]), ("dog", "cat", "owl"), (0.5,), (0.25,), flip=True)
    return replace(splits, **changed)


def test_the_recipe_replaces_the_sets_own_choices():
    own = data_set(imbalance=Imbalance(kind="exponential", factor=4))
    data = cut(own)
    assert data.class_counts.tolist() == [20, 10, 5]
    assert data.class_counts.dtype == torch.int64
    assert (data.transform.crop_padding, data.transform.flip, data.val) == (0, True, None)
    assert data.train.images[:, 0, 0, 0].tolist() == data.kept.tolist()
    data = cut(own, Imbalance(kind="counts", counts=[1, 2, 3]), transform={"crop_padding": 2, "flip": False})
    assert (data.class_counts.tolist(), data.transform.crop_padding, data.transform.flip) == ([1, 2, 3], 2, False)
    data = cut(own, Imbalance())
    assert data.train is own.train
    assert data.kept.tolist() == list(range(60))


@pytest.mark.parametrize("imbalance", [Imbalance(), Imbalance(kind="exponential", factor=4, seed=3)])
def test_holding_out(imbalance):
    whole, data = cut(data_set(), imbalance), cut(data_set(), imbalance, holdout=5)
    assert data.val is not None
    held = data.val.images[:, 0, 0, 0].tolist()
    kept = data.kept.tolist()
    assert not set(held) & set(kept)
    assert set(held) | set(kept) == set(whole.kept.tolist())
    assert [i for i in whole.kept.tolist() if i not in held] == kept
    sits_out = whole.class_counts <= 5
    assert torch.equal(whole.class_counts - data.class_counts, torch.where(sits_out, 0, 5))
    assert data.train.images[:, 0, 0, 0].tolist() == kept
    fewer = cut(data_set(), imbalance, holdout=3)
    assert fewer.val is not None and set(fewer.val.images[:, 0, 0, 0].tolist()) & set(held)
    again = cut(data_set(), imbalance, holdout=5)
    assert again.val is not None and again.val.images[:, 0, 0, 0].tolist() == held


def test_holding_out_before_the_tail_is_cut():
    """Each class has some, which no other cut may train on, and the tail is cut from what is left."""
    tail = Imbalance(kind="exponential", factor=4)
    data = cut(data_set(), tail, holdout=6, holdout_before_cut=True)
    assert data.val is not None and torch.bincount(data.val.targets).tolist() == [6, 6, 6]
    assert data.class_counts.tolist() == [14, 7, 3]  # of 14 images a class, where 6 of 20 are held out
    assert torch.bincount(data.train.targets).tolist() == data.class_counts.tolist()
    held, kept = data.val.images[:, 0, 0, 0].tolist(), data.kept.tolist()
    assert not set(held) & set(kept) and data.train.images[:, 0, 0, 0].tolist() == kept
    steeper = cut(data_set(), Imbalance(kind="step", factor=7), holdout=6, holdout_before_cut=True)
    assert steeper.val is not None and steeper.val.images[:, 0, 0, 0].tolist() == held
    plain = cut(data_set(), tail, holdout=0, holdout_before_cut=True)
    assert plain.val is None and plain.kept.tolist() == cut(data_set(), tail).kept.tolist()
    one, other = (cut(data_set(), Imbalance(), holdout=6, holdout_before_cut=before) for before in (True, False))
    assert one.kept.tolist() == other.kept.tolist()  # where nothing is cut, there is no before
    with pytest.raises(DataError, match="no class has more training images than that"):
        cut(data_set(), tail, holdout=20, holdout_before_cut=True)


def test_a_larger_holdout_contains_the_smaller():
    small, large = (cut(data_set(), holdout=n).val for n in (2, 6))
    assert small is not None and large is not None
    assert set(small.images[:, 0, 0, 0].tolist()) < set(large.images[:, 0, 0, 0].tolist())


def test_holding_out_refused():
    with pytest.raises(DataError, match=r"validation split of its own \(2 images\)"):
        cut(data_set(val=split([0, 1])), holdout=1)
    assert cut(data_set(val=split([0, 1]))).val is not None
    with pytest.raises(DataError, match=r"no class has more training images than that \(the largest has 20"):
        cut(data_set(), holdout=20)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": split([0, 2, 0])}, r"class 1 \('cat'\) would have no training image: the data set has none"),
        ({"test": split([0, 3])}, r"the test label at index 1 is 3, but .* 3 classes, .*class 2 \('owl'\)"),
        ({"val": split([-1])}, "the validation label at index 0 is -1"),
        ({"test": split([])}, "the test split has no images"),
        ({"test": split([0], size=5)}, r"the test images are \(1, 5, 5\) .*but the training images are \(1, 4, 4\)"),
        ({"mean": (0.5, 0.5)}, "2 values of mean, but the images have 1 channels"),
        ({"class_names": ("dog",)}, "at least two"),
        ({"test": ArraySplit(torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64))}, "but must be uint8"),
        ({"test": ArraySplit(split([0]).images, torch.zeros(2, dtype=torch.int64))}, "one for each of the 1 images"),
        ({"test": ArraySplit(split([0]).images, torch.zeros(1))}, "but must be int64"),
    ],
)
def test_malformed_sets_are_refused(changed, message):
    with pytest.raises(DataError, match=message):
        cut(data_set(**changed))


def test_images_must_be_square():
    wide = ArraySplit(torch.zeros(3, 1, 4, 5, dtype=torch.uint8), torch.arange(3))
    with pytest.raises(DataError, match="4 x 5 pixels, but must be square"):
        cut(DataSplits(wide, wide, ("a", "b", "c"), (0.5,), (0.25,)))


def test_describe_and_render():
    data = cut(data_set(), Imbalance(kind="counts", counts=[5, 20, 10]), holdout=6, transform={"crop_padding": 1})
    record = describe(data, "birds")
    assert record["class_counts"] == [5, 14, 4]
    assert record["images"] == {"train": 23, "val": 12, "test": 3}
    assert record["imbalance_factor"] == 3.5
    assert record["groups"]["few"] == {"classes": 3, "images": 23}
    text = render(record)
    assert "birds: 3 classes, 1 x 4 x 4" in text
    assert "random crop, padding 1, flip" in text
    assert text.splitlines()[-3:] == ["cat  14  " + "#" * 40, "dog   5  " + "#" * 14, "owl   4  " + "#" * 11]


def test_a_long_name_is_cut_after_24_characters():
    record = describe(cut(data_set()), "birds") | {"class_names": ["abcdefghijklmnopqrstuvwxyz", "dog", "cat"]}
    shown = [line.split()[0] for line in render(record).splitlines() if "#" in line]
    assert "abcdefghijklmnopqrstuvwx" in shown


def test_many_classes_share_rows():
    counts = [int(500 * 0.01 ** (i / 99)) for i in range(100)]
    names = tuple(f"n{i}" for i in range(100))
    data = cut(DataSplits(split([0, 1]), split([1]), ("a", "b"), (0.5,), (0.25,), imbalance=Imbalance()))
    record = describe(data, "many") | {"num_classes": 100, "class_counts": counts, "class_names": list(names)}
    rows = render(record).splitlines()
    bars = [row for row in rows if "#" in row]
    assert len(bars) == 20
    assert bars[0].startswith("classes 1..5 ") and "500..415" in bars[0]
    assert bars[-1].startswith("classes 96..100 ")


def test_the_histogram():
    counts = [150, 300, 60, 10]
    record = describe(cut(data_set()), "birds") | {"class_counts": counts}
    pixels = np.asarray(Image.open(io.BytesIO(histogram(record))))
    bottom = TOP + HEIGHT
    for rank, count in enumerate(sorted(counts, reverse=True)):
        column = pixels[TOP:bottom, LEFT + WIDTH * rank // 4 + 20]
        assert (column == COLORS[shot_group(count)]).all(1).sum() == HEIGHT * count // 300
    white = (pixels[bottom - 3, LEFT : LEFT + WIDTH] == 255).all(1)
    assert np.flatnonzero(white).tolist() == [WIDTH * edge // 4 - 1 for edge in (1, 2, 3, 4)]  # one pixel behind each
    narrow = histogram(record | {"class_counts": [100] * (WIDTH // 3)})  # three pixels each, with nothing between them
    row = np.asarray(Image.open(io.BytesIO(narrow)))[bottom - 3, LEFT : LEFT + WIDTH]
    assert (row == COLORS[shot_group(100)]).all()
    assert histogram(record | {"class_counts": list(range(1, 8143))})
    assert [_step(n) for n in (1, 7, 10, 11, 30, 99, 100, 4980)] == [1, 1, 2, 2, 5, 10, 20, 500]


def test_normalisation_of_the_recipe():
    data = cut(data_set(), normalize={"mean": [0.1], "std": [0.2]})
    assert (data.mean, data.std) == ((0.1,), (0.2,))
    with pytest.raises(DataError, match=r"data.normalize has 3 values of mean, but the images have 1 channels"):
        cut(data_set(), normalize={"mean": [0.5] * 3, "std": [0.5] * 3})


def test_both_kinds_of_images_in_one_set_are_refused():
    streamed = FileSplit(Path("."), np.array([b"a.jpg"]), torch.tensor([1]))
    with pytest.raises(DataError, match=r"training and the test images must both be in memory .* or both be streamed"):
        cut(data_set(test=streamed))
