import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from ltcore.contract.splits import FileSplit
from ltcore.data.class_names import names_from_folders
from ltcore.data.image_files import missing_files
from ltcore.data.image_list import ImageList
from ltcore.data.layouts import alternatives, class_folder, relocate
from ltcore.errors import DataError


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("LTCORE_DATA", raising=False)


def put(root, *files):
    """Images whose one colour says which file they are."""
    for number, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (number, 7, 9)).save(path)


TRAIN = {"cats/black cat 1.png": 0, "cats/2.jpg": 0, "cats/3.jpg": 0, "dogs/1.jpg": 1}
TEST = {"t/c.png": 0, "t/d e.png": 1}


@pytest.fixture
def lists(tmp_path):
    """Write lists; the images are those of TRAIN and TEST."""
    put(tmp_path, *TRAIN, *TEST)

    def write(train=TRAIN, test=TEST, val=None, **options):
        for name, content in (("train", train), ("test", test), ("val", val)):
            if content is not None:
                if not isinstance(content, str):
                    content = "".join(f"{file} {label}\n" for file, label in content.items())
                (tmp_path / f"{name}.txt").write_text(content)
        options = {"root": str(tmp_path), "train": "train.txt", "test": "test.txt", **options}
        return ImageList(ImageList.Options(**options | ({} if val is None else {"val": "val.txt"})))

    return write


def refused(method, *parts):
    with pytest.raises(DataError) as caught:
        method.build_data()
    message = str(caught.value)
    position = 0
    for part in parts:
        assert part in message[position:], message
        position = message.index(part, position) + len(part)
    assert "\n" not in message
    return message


# -- what is read ------------------------------------------------------------------------------------------------------


def test_lists_with_spaces_in_paths(lists, tmp_path):
    splits = lists().build_data()
    assert splits.class_names == ("cats", "dogs")
    assert splits.train.targets.tolist() == [0, 0, 0, 1] and splits.train.targets.dtype == torch.int64
    assert [splits.train.name(i) for i in range(4)] == [str(tmp_path / file) for file in TRAIN]
    assert splits.train.open(0).getpixel((0, 0)) == (0, 7, 9) and splits.test.open(1).getpixel((0, 0)) == (5, 7, 9)
    assert (splits.transform, splits.image_size, splits.val, splits.notes) == ("imagenet", 224, None, ())
    assert splits.imbalance.kind == "none" and len(splits.mean) == len(splits.std) == 3


def test_tabs_blank_lines_windows_line_ends_and_a_byte_order_mark(lists):
    plain = lists().build_data()
    text = "\ufeffcats/black cat 1.png\t0\r\n\r\n./cats/2.jpg  0 \r\ncats/3.jpg 0\r\ndogs/1.jpg 1"
    found = lists(train=text).build_data()
    assert found.train.files.tolist() == plain.train.files.tolist()
    assert found.class_names == plain.class_names


def test_validation_list(lists):
    assert lists().provides == set()
    method = lists(train={"cats/2.jpg": 0, "dogs/1.jpg": 1}, val={"cats/3.jpg": 0})
    assert method.provides == {"validation"}
    assert method.build_data().val.files.tolist() == [b"cats/3.jpg"]


def test_root_from_the_environment_and_lists_elsewhere(lists, tmp_path, monkeypatch):
    lists()
    refused(lists(root=None), "data.options.root=DIR", "LTCORE_DATA")
    monkeypatch.setenv("LTCORE_DATA", str(tmp_path))
    assert len(lists(root=None).build_data().train) == 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "train.txt").rename(tmp_path / "lists" / "train.txt")
    put(tmp_path / "images", *TRAIN, *TEST)
    method = ImageList(ImageList.Options(root="images", train="lists/train.txt", test=str(tmp_path / "test.txt")))
    assert method.build_data().train.open(1).size == (4, 3)


def test_class_names(lists, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("tabby cat\ngreat dane\n\n")
    assert lists(class_names="names.txt").build_data().class_names == ("tabby cat", "great dane")
    names.write_text("/d/dog 1\n/c/cat 0\n")  # as Places365 writes them
    assert lists(class_names="names.txt").build_data().class_names == ("/c/cat", "/d/dog")
    names.write_text("cat\ncat\n")
    refused(lists(class_names="names.txt"), "names.txt:2", "'cat'", "twice")
    names.write_text("cat\n\ndog\n")
    refused(lists(class_names="names.txt"), "names.txt:2", "empty")
    names.write_text(" \n")
    refused(lists(class_names="names.txt"), "names.txt", "is empty", "one class name a line")
    names.write_text(f"cat {'0' * 5000}\ndog 1\n")  # no number of a class
    assert lists(class_names="names.txt").build_data().class_names[1] == "dog 1"
    names.write_text("cat\n")
    refused(lists(class_names="names.txt"), "train.txt:4", "label is 1", "1 class names")
    names.write_text("cat\ndog\nowl\n")
    refused(lists(class_names="names.txt"), "train.txt", "class 2 has no training image")


@pytest.mark.parametrize(
    "text",
    [
        "0 tabby cat\n1 great dane\n",
        "2 great dane\n1 tabby cat\n",
        "tabby cat 0\ngreat dane 1\n",
        "id,name\n1,great dane\n0,tabby cat\n",
        "great dane;1\ntabby cat;0\n",
        "class\tgroup\tnumber\ntabby cat\tpet\t0\ngreat dane\tpet\t1\n",
        '"great dane",2\n"tabby cat",1\n',
    ],
)
def test_class_names_with_numbers(lists, tmp_path, text):
    (tmp_path / "names.csv").write_text(text)
    assert lists(class_names="names.csv").build_data().class_names == ("tabby cat", "great dane")


def test_class_names_that_only_look_numbered(lists, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("Boeing 747\nAirbus 320\n")
    assert lists(class_names="names.txt").build_data().class_names == ("Boeing 747", "Airbus 320")
    names.write_text("tench, Tinca tinca\ngoldfish, Carassius auratus\n")
    assert lists(class_names="names.txt").build_data().class_names[1] == "goldfish, Carassius auratus"
    names.write_text("0 1\n1 0\n")
    assert lists(class_names="names.txt").build_data().class_names == ("1", "0")  # it is both ways the same
    names.write_text("0,2\n1,1\n")
    refused(lists(class_names="names.txt"), "both columns could be the labels")


@pytest.mark.parametrize(
    "listed, hint",
    [
        ("cats/black cat 1", "('cats/black cat 1.png' is there: add the ending)"),
        ("Cats/2.JPG", "('cats/2.jpg' is there: upper and lower case differ)"),
        ("cats\\2.jpg", "('cats/2.jpg' is there: write / for \\)"),
    ],
)
def test_missing_images_that_are_there_under_another_name(lists, listed, hint):
    refused(lists(train={listed: 0, "dogs/1.jpg": 1}), "1 of 2 images are not in", f"{listed} {hint}")
    assert "is there" not in refused(lists(train={"cats/9.jpg": 0, "dogs/1.jpg": 1}), "cats/9.jpg.")


@pytest.mark.parametrize("again", ["cats//2.jpg", "dogs/../cats/2.jpg", "{root}/cats/2.jpg"])
def test_one_image_under_two_paths(lists, tmp_path, again):
    again = again.format(root=tmp_path)
    message = refused(lists(test={"t/c.png": 0, again: 0}), f"test.txt:2: {again} is also in", "train.txt, line 2")
    assert "an image belongs to one split" in message
    refused(lists(train=TRAIN | {again: 0}), "train.txt:5", f"{again} is listed twice (first in line 2")


def test_lists_that_number_the_classes_otherwise(lists, tmp_path):
    put(tmp_path, "val/cats/8.png", "val/dogs/8.png", "val/dogs/9.png")
    good = {"val/cats/8.png": 0, "val/dogs/8.png": 1}
    assert lists(test=good).build_data().test.targets.tolist() == [0, 1]
    swapped = {"val/dogs/8.png": 0, "val/cats/8.png": 1}
    refused(
        lists(test=swapped), "test.txt:1: images of the folder 'dogs' have the label 0, but 1 in", "train.txt, line 4"
    )
    # Where a folder holds two classes, folders are no classes.
    assert lists(test=swapped | {"val/dogs/9.png": 1}).build_data().test.targets.tolist() == [0, 1, 1]


def test_class_names_from_folders():
    folder = class_folder
    assert names_from_folders(["a/x.jpg", "b/y.jpg"], [1, 0], 2, folder) == ("b", "a")
    assert names_from_folders(["s/a/x", "t/a/y", "s/b/z"], [0, 1, 2], 3, folder) == ("s/a", "t/a", "s/b")
    assert names_from_folders(["a/x", "b/y", "b/z"], [0, 0, 1], 2, folder) == ("0", "1")  # two folders in a class
    assert names_from_folders(["a/x", "a/y"], [0, 1], 2, folder) == ("0", "1")  # two classes in a folder
    assert names_from_folders(["x", "y"], [0, 1], 2, folder) == ("0", "1")


def test_split_is_one_array_and_pickles(lists):
    split = lists().build_data().train
    assert isinstance(split, FileSplit) and isinstance(split.files, np.ndarray) and split.files.dtype.kind == "S"
    assert split.files.nbytes == 4 * len("cats/black cat 1.png")
    again = pickle.loads(pickle.dumps(split))
    assert again.files.tolist() == split.files.tolist() and torch.equal(again.targets, split.targets)
    assert again.open(3).getpixel((0, 0)) == split.open(3).getpixel((0, 0))
    part = split.subset(torch.tensor([3, 0]))
    assert part.targets.tolist() == [1, 0] and part.name(1) == split.name(0) and len(part) == 2


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, parts",
    [
        ("cats/4.jpg", ["'cats/4.jpg' has no label"]),
        ("cats/a b.jpg", ["label 'b.jpg' is not a whole number"]),
        ("cats/4.jpg 1.0", ["label '1.0' is not a whole number"]),
        ("cats/4.jpg -1", ["label '-1' is negative"]),
        ("cats/4.jpg ²", ["'²' is not a whole number"]),
        ("cats/2.jpg 1", ["cats/2.jpg is listed twice (first in line 2, with label 0)"]),
        ("./cats/2.jpg 0", ["listed twice"]),
    ],
)
def test_a_wrong_line(lists, line, parts):
    text = "".join(f"{file} {label}\n" for file, label in TRAIN.items())
    refused(lists(train=f"{text}\n{line}\n"), "train.txt:6: ", *parts)


def test_wrong_lists(lists, tmp_path):
    refused(lists(train="\n \n"), "train.txt: the list is empty")
    refused(lists(test=""), "test.txt: the list is empty")
    refused(lists(train={"cats/2.jpg": 0, "dogs/1.jpg": 2}), "train.txt: class 1 has no training image, but class 2")
    message = refused(lists(train={"cats/2.jpg": 1, "dogs/1.jpg": 10**8}), "no training image", "without gaps")
    assert len(message) < 400
    refused(lists(test={"t/c.png": 2}), "test.txt:1: the label is 2", "train.txt has the classes 0 to 1")
    refused(lists(test={"t/c.png": 0, "cats/2.jpg": 0}), "test.txt:2: cats/2.jpg is also in", "train.txt, line 2")
    refused(lists(val=TEST), "test.txt:1: t/c.png is also in", "val.txt, line 1", "data.holdout")
    refused(lists(class_names="n.txt"), "n.txt is neither in", "(data.options.class_names)")
    absent = ImageList(ImageList.Options(root=str(tmp_path), train=str(tmp_path / "no.txt"), test="test.txt"))
    refused(absent, "no.txt is not there (data.options.train)")
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    method = ImageList(ImageList.Options(root=str(tmp_path), train="train.txt", test="test.txt"))
    refused(method, "train.txt is not a UTF-8 text file")


def test_missing_images_are_counted_and_named(lists, tmp_path):
    for file in list(TRAIN)[:4]:
        (tmp_path / file).unlink()
    message = refused(
        lists(), "train.txt: 4 of 4 images are not in", "cats/black cat 1.png, cats/2.jpg, cats/3.jpg, ..."
    )
    assert "dogs/1.jpg" not in message and "check_files=false" in message
    splits = lists(check_files=False).build_data()
    assert len(splits.train) == 4
    with pytest.raises(FileNotFoundError):
        splits.train.open(0)


def test_missing_files_lists_each_directory_once(tmp_path, monkeypatch):
    put(tmp_path, "a/1.png", "a/2.png", "b/1.png", "0.png")
    asked = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: asked.append(str(path)) or real(path))
    files = ["a/1.png", "a/3.png", "b/1.png", "c/1.png", "a/2.png", "0.png", "c/2.png"]
    assert missing_files(tmp_path, files) == [1, 3, 6]
    assert len(asked) == len(set(asked)) == 4


# -- Places' two layouts -----------------------------------------------------------------------------------------------

BY_CLASS = {
    "train": ["train/airfield/00000001.jpg", "train/apartment_building-outdoor/00000002.jpg"],
    "val": ["val/airfield/Places365_val_00000003.jpg", "val/apartment_building-outdoor/Places365_val_00000004.jpg"],
}
BY_LETTER = {
    "train": ["data_256/a/airfield/00000001.jpg", "data_256/a/apartment_building/outdoor/00000002.jpg"],
    "val": ["val_256/Places365_val_00000003.jpg", "val_256/Places365_val_00000004.jpg"],
}


@pytest.mark.parametrize("prefix", ["", "places365_standard/"])
@pytest.mark.parametrize("written, stored", [(BY_CLASS, BY_LETTER), (BY_LETTER, BY_CLASS), (BY_CLASS, BY_CLASS)])
def test_lists_of_one_layout_read_images_of_the_other(tmp_path, written, stored, prefix):
    put(tmp_path / prefix, *stored["train"], *stored["val"])
    for split in ("train", "val"):
        lines = [f"{file} {label}\n" for label, file in enumerate(written[split])]
        (tmp_path / f"{split}.txt").write_text("".join(lines))
    method = ImageList(ImageList.Options(root=str(tmp_path), train="train.txt", test="val.txt"))
    splits = method.build_data()
    for split, expected in ((splits.train, stored["train"]), (splits.test, stored["val"])):
        assert [split.name(i) for i in range(2)] == [str(tmp_path / prefix / file) for file in expected]
        split.open(1).load()
    # The names are the same whichever list is used, so that runs can be compared.
    assert splits.class_names == ("airfield", "apartment_building-outdoor")
    assert len(splits.notes) == (0 if written is stored and not prefix else 2)


def test_a_layout_is_not_guessed_where_the_listed_images_are_there(tmp_path):
    put(tmp_path, *BY_CLASS["train"], *BY_LETTER["train"])
    assert relocate(tmp_path, BY_CLASS["train"], ["", ""]) == BY_CLASS["train"]
    assert relocate(tmp_path, BY_LETTER["train"], ["", ""]) == BY_LETTER["train"]


def test_images_missing_from_both_layouts_are_named_as_listed(tmp_path):
    assert relocate(tmp_path, BY_CLASS["train"], ["", ""]) == BY_CLASS["train"]


def test_imagenet_validation_images_in_one_folder(tmp_path):
    put(tmp_path, "train/n01/a.jpg", "val/v1.jpg", "val/v2.jpg")
    assert relocate(tmp_path, ["val/n01/v1.jpg", "val/n02/v2.jpg"], ["", ""]) == ["val/v1.jpg", "val/v2.jpg"]


def test_paths_of_no_layout_have_no_alternative():
    assert alternatives("cats/1.jpg", "cats") == ("cats/1.jpg",)
    assert alternatives("train/a/b/c/1.jpg", "a") == ("train/a/b/c/1.jpg",)
    assert alternatives("val_256/1.jpg", "") == ("val_256/1.jpg",)
