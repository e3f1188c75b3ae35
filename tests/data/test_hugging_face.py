"""With a module of the same interface as `datasets`, and with the library itself where it is installed."""

import io
import pickle
import sys
import types

import pytest
import torch
from PIL import Image

from ltcore.data.hugging_face import HuggingFace
from ltcore.errors import DataError


def png(value):
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


class ImageFeature:
    def __init__(self, decode=True):
        self.decode = decode


ImageFeature.__name__ = "Image"


class ClassLabel:
    def __init__(self, names):
        self.names = names


class Value:
    pass


class Table:
    """What `hugging_face` uses of a ``datasets.Dataset``."""

    def __init__(self, features, columns):
        self.features, self.columns = features, columns

    def select_columns(self, names):
        return Table({n: self.features[n] for n in names}, {n: self.columns[n] for n in names})

    def cast_column(self, name, feature):
        return Table({**self.features, name: feature}, self.columns)

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        assert not any(isinstance(f, ImageFeature) and f.decode for f in self.features.values()), "decoded in the table"
        return {name: values[key] for name, values in self.columns.items()}


def table(labels, names=("cat", "dog"), **columns):
    features = {"image": ImageFeature(), "label": Value() if names is None else ClassLabel(list(names))}
    images = [{"bytes": png(number), "path": None} for number in range(len(labels))]
    features |= {name: Value() for name in columns}
    return Table(features, {"image": images, "label": labels, **columns})


@pytest.fixture
def library(monkeypatch):
    """A fake ``datasets`` with the given splits; what it was asked for is in `calls`."""
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    fake = sys.modules["datasets"]
    fake.Image, fake.calls = ImageFeature, []

    def offer(**splits):
        def load_dataset(path, config=None, split=None, revision=None):
            fake.calls.append((path, config, split, revision))
            if split not in splits:
                raise ValueError(f'Unknown split "{split}".\nShould be one of {list(splits)}.')
            return splits[split]

        fake.load_dataset = load_dataset
        fake.load_from_disk = lambda path: splits
        return fake

    return offer


def make(**options):
    return HuggingFace(HuggingFace.Options(**{"path": "someone/animals", **options}))


def refused(method, *parts):
    with pytest.raises(DataError) as caught:
        method.build_data()
    message = str(caught.value)
    assert all(part in message for part in parts) and "\n" not in message, message


def test_splits_of_a_table(library):
    fake = library(train=table([1, 0, 1]), test=table([0, 1]), valid=table([0]))
    method = make(config="large", revision="abc", val="valid")
    splits = method.build_data()
    assert fake.calls[0] == ("someone/animals", "large", "train", "abc") and len(fake.calls) == 3
    assert method.provides == {"validation"} and make().provides == set()
    assert splits.class_names == ("cat", "dog") and splits.transform == "imagenet" and len(splits.val) == 1
    assert splits.train.targets.tolist() == [1, 0, 1] and splits.train.targets.dtype == torch.int64
    part = splits.train.subset(torch.tensor([2, 0]))
    assert part.targets.tolist() == [1, 1] and len(part) == 2
    again = pickle.loads(pickle.dumps(part))
    assert again.open(0).getpixel((0, 0)) == (2, 0, 0) and part.open(1).getpixel((0, 0)) == (0, 0, 0)
    assert part.name(0) == "someone/animals (train), row 2"
    # A subset of a subset still counts the table's rows.
    assert part.subset(torch.tensor([1])).name(0).endswith("row 0")


def test_images_that_are_files(library, tmp_path):
    Image.new("RGB", (9, 3)).save(tmp_path / "1.png")
    train = table([0, 1])
    train.columns["image"] = [{"bytes": None, "path": str(tmp_path / "1.png")}, None]
    library(train=train, test=table([0, 1]))
    split = make().build_data().train
    assert split.open(0).size == (9, 3)
    with pytest.raises(OSError, match=r"row 1 is empty"):
        split.open(1)


def test_columns(library):
    library(train=table([0, 1], fine=[1, 0]), test=table([1, 0], fine=[0, 1]))
    assert make(label="fine").build_data().train.targets.tolist() == [1, 0]
    assert make(label="fine").build_data().class_names == ("0", "1")
    refused(make(label="fnie"), "no column 'fnie'; did you mean 'fine'?", "'image', 'label', 'fine'")
    refused(make(image="label"), "'label' is not of the type Image", "data.options.image")
    library(train=table([0, 1], names=None), test=table([0, 1]))
    refused(make(), "no columns of the type ClassLabel among", "data.options.label")
    both = table([0, 1])
    both.features["depth"] = ImageFeature()
    both.columns["depth"] = both.columns["image"]
    library(train=both, test=table([0, 1]))
    refused(make(), "2 columns of the type Image among", "data.options.image")
    library(train=table([0, 1], fine=[0, 1]), test=table([0, 1]))
    refused(make(label="fine"), "(test): no column 'fine'")


def test_labels_that_are_lists_or_true_and_false(library):
    library(train=table([[0], [0, 1]]), test=table([0, 1]))
    refused(make(), "(train): column 'label' holds a list of labels an image", "data.options.label")
    library(train=table([True, False], names=None), test=table([0, 1]))
    refused(make(label="label"), "column 'label' is true or false", "cast_column('label', datasets.Value('int64'))")


def test_labels(library):
    good = table([0, 1])
    for wrong, parts in (
        (table([]), ["(test) has no images"]),
        (table([0, -1, -1]), ["(test): 2 images without a label", "row 1"]),
        (table([0, 2]), ["(test): 1 labels outside 0 to 1", "first 2 in row 1"]),
        (table(["a", "b"]), ["(test)", "must hold one whole number", "class_encode_column"]),
        (table([[0, 1], [1, 0]]), ["(test)", "a list of labels an image"]),
    ):
        library(train=good, test=wrong)
        refused(make(), *parts)
    library(train=table([], names=None), test=good)
    refused(make(label="label"), "(train) has no images")
    library(train=table([0, 0]), test=good)
    refused(make(), "(train): 1 of 2 classes have no image, first class 1")


def test_classes_are_joined_by_name(library):
    library(train=table([0, 1, 2], ("cat", "dog", "owl")), test=table([0, 0, 1, 2], ("owl", "bat", "cat")))
    refused(
        make(), "(test): 1 images are of 1 classes that someone/animals (train) does not have, first 'bat'; did you"
    )
    library(train=table([0, 1, 2], ("cat", "dog", "owl")), test=table([0, 0, 2, 2], ("owl", "bat", "cat")))
    splits = make().build_data()  # no image is of 'bat'
    assert splits.class_names == ("cat", "dog", "owl") and splits.test.targets.tolist() == [2, 2, 0, 0]
    assert splits.train.targets.tolist() == [0, 1, 2] and splits.notes == ()
    library(train=table([0, 1], ("cat", "cat")), test=table([0, 1], ("cat", "dog")))
    refused(make(), "(train): the class name 'cat' stands there twice")
    library(train=table([0, 1], ("cat", "cat")), test=table([1, 0], ("cat", "cat")))
    assert make().build_data().test.targets.tolist() == [1, 0]  # in the same order, twice does no harm


def test_names_on_one_side_only_are_told(library):
    library(train=table([0, 1]), test=table([1, 0], None))
    (note,) = make().build_data().notes
    assert "(test): column 'label' lacks class names, but that of train has them" in note
    library(train=table([0, 1], None), test=table([1, 2], ("a", "b", "c")))
    refused(make(label="label"), "(test): 1 labels outside 0 to 1")


def test_what_the_library_says_is_one_message(library, tmp_path):
    library(train=table([0, 1]))
    refused(make(), "'someone/animals', split 'test'", 'Unknown split "test". Should be one of', "data.options")
    (tmp_path / "dataset_dict.json").write_text("{}")
    refused(make(path=str(tmp_path)), "has the splits 'train', but not 'test'")
    library(train=table([0, 1]), test=table([0, 1]))
    assert len(make(path=str(tmp_path)).build_data().train) == 2
    sys.modules["datasets"].load_from_disk = lambda path: table([0, 1])
    refused(make(path=str(tmp_path)), "one split without a name", "DatasetDict")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(make(), "hugging_face needs the library datasets", "pip install 'ltcore[hf]'")


def test_with_the_library_itself(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    value = 0
    for split, count in (("train", 2), ("test", 1)):
        for name in ("cat", "dog"):
            (tmp_path / "folder" / split / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "folder" / split / name / f"{number}.png").write_bytes(png(value))
                value += 1
    datasets.load_dataset(str(tmp_path / "folder")).save_to_disk(str(tmp_path / "saved"))
    for path in (str(tmp_path / "folder"), str(tmp_path / "saved")):
        splits = make(path=path).build_data()
        assert (len(splits.test), splits.class_names) == (2, ("cat", "dog"))
        assert splits.train.targets.tolist() == [0, 0, 1, 1]
        assert [splits.train.open(i).getpixel((0, 0))[0] for i in range(4)] == [0, 1, 2, 3]
        again = pickle.loads(pickle.dumps(splits.train.subset(torch.tensor([2]))))
        assert again.open(0).getpixel((0, 0)) == (2, 0, 0)
    refused(make(path=str(tmp_path / "saved"), test="tset"), "not 'tset'; did you mean 'test'?")
    refused(make(path=str(tmp_path / "nowhere")), "nowhere', split 'train': ")
