import os
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from ltcore.data import image_files
from ltcore.data.fractions import Fractions, split_class, split_images
from ltcore.data.image_files import find_images, said_left_out
from ltcore.data.image_folder import ImageFolder
from ltcore.errors import DataError


def put(root, *files):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path)


def numbered(folder, count, suffix="png"):
    return [f"{folder}/{number:02}.{suffix}" for number in range(count)]


def build(root, **options):
    return ImageFolder(ImageFolder.Options(root=str(root), **options)).build_data()


def names(split):
    return {file.decode() for file in split.files}


def refused(root, *parts, **options):
    with pytest.raises(DataError) as caught:
        build(root, **options)
    message = str(caught.value)
    assert all(part in message for part in parts) and "\n" not in message, message


def parts_of(files, test, val, seed=0):
    """The training, validation and test images of one class without groups."""
    part = split_class(dict.fromkeys(files, 1), Fractions(test, val, seed=seed))
    return tuple([file for file in files if part[file] == name] for name in ("train", "val", "test"))


# -- split by fraction -------------------------------------------------------------------------------------------------


def test_each_class_is_split_by_fraction(tmp_path):
    put(tmp_path, *numbered("cat", 20), *numbered("dog", 10, "JPG"), *numbered("owl", 2, "webp"))
    splits = build(tmp_path)
    assert splits.class_names == ("cat", "dog", "owl")
    counts = {
        name: torch.bincount(getattr(splits, name).targets, minlength=3).tolist() for name in ("train", "val", "test")
    }
    assert counts == {"train": [14, 7, 1], "val": [2, 1, 0], "test": [4, 2, 1]}
    everything = [*splits.train.files, *splits.val.files, *splits.test.files]
    assert len(everything) == len(set(everything)) == 32
    assert splits.train.open(0).size == (4, 3) and splits.notes == ()
    for split in (splits.train, splits.val, splits.test):
        assert [file.split(b"/")[0].decode() for file in split.files] == [
            splits.class_names[label] for label in split.targets
        ]


def test_the_split_is_a_function_of_seed_and_names(tmp_path):
    files = [*numbered("cat", 20), *numbered("dog", 10)]
    put(tmp_path / "a", *files)
    put(tmp_path / "b", *reversed(files))  # made in another order, in another place
    one, two = build(tmp_path / "a"), build(tmp_path / "b")
    assert one.train.files.tolist() == two.train.files.tolist() and one.test.files.tolist() == two.test.files.tolist()
    other = build(tmp_path / "a", split_seed=1)
    assert names(other.test) != names(one.test) and len(other.test) == len(one.test)
    put(tmp_path / "b", *numbered("owl", 5))
    assert names(one.test) < names(build(tmp_path / "b").test)  # another class changes nothing in these


def test_which_images_are_tested_on_is_pinned():
    # A change of this rule would change every user's test set.
    assert parts_of(numbered("cat", 10), 0.2, 0.1)[1:] == (["cat/04.png"], ["cat/00.png", "cat/09.png"])


@given(st.integers(1, 40), st.floats(0.01, 0.6), st.floats(0, 0.39), st.integers(0, 5))
def test_split_sizes_and_growth(n, test, val, seed):
    files = numbered("c", n)
    parts = parts_of(files, test, val, seed)
    assert sorted(file for part in parts for file in part) == files
    train, held, tested = map(len, parts)
    assert train >= 1 and (tested >= 1) == (n >= 2) and (held >= 1 or val == 0 or n < 3)
    if n >= 10 and min(test, val) > 0.1:
        assert abs(tested - test * n) <= Fraction(1, 2) + Fraction(1, 10**9)
        assert abs(held - val * n) <= Fraction(1, 2) + Fraction(1, 10**9)
    grown = parts_of([*files, "c/new.png"], test, val, seed)
    assert sum(len(set(before) - set(after)) for before, after in zip(parts, grown, strict=True)) <= 3


def test_no_validation_split(tmp_path):
    put(tmp_path, *numbered("cat", 10), *numbered("dog", 10))
    method = ImageFolder(ImageFolder.Options(root=str(tmp_path), val_fraction=0))
    assert method.provides == set() and method.build_data().val is None
    assert ImageFolder(ImageFolder.Options(root=str(tmp_path))).provides == {"validation"}


def test_single_images_are_trained_on_and_told(tmp_path):
    put(tmp_path, *numbered("cat", 3), "dog/1.png")
    splits = build(tmp_path)
    assert torch.bincount(splits.train.targets).tolist() == [1, 1]
    assert splits.notes == ("classes of one image, which is trained on and none tested: 1, first 'dog'",)
    put(tmp_path / "single", "cat/1.png", "dog/1.png")
    refused(tmp_path / "single", "every class has a single image")


def test_depth_hidden_files_and_other_files(tmp_path):
    put(
        tmp_path, "cat/a/b/1.png", "cat/2 3.jpeg", "dog/1.TIF", "dog/2.bmp", "dog/3.gif", ".trash/1.png", "cat/.t/1.png"
    )
    for junk in ("cat/Thumbs.db", "cat/.DS_Store", "cat/.5.png", "dog/notes.txt", "readme.md"):
        (tmp_path / junk).write_text("")
    splits = build(tmp_path, val_fraction=0)
    assert names(splits.train) | names(splits.test) == {
        "cat/a/b/1.png", "cat/2 3.jpeg", "dog/1.TIF", "dog/2.bmp", "dog/3.gif"
    }  # fmt: skip
    (note,) = splits.notes
    assert "4 files are left out, as hidden or no images that are read: 2 hidden, 1 .db, 1 .txt" in note
    assert note.endswith("(3 in 'cat', 1 in 'dog')")


def test_links_are_followed_once(tmp_path):
    put(tmp_path, "images/1.png", "images/deep/2.png")
    (tmp_path / "class").mkdir()
    os.symlink(tmp_path / "images", tmp_path / "class" / "linked")
    os.symlink(tmp_path / "class", tmp_path / "images" / "circle")
    assert find_images(tmp_path / "class").files == ("linked/1.png", "linked/deep/2.png")


# -- split by folders --------------------------------------------------------------------------------------------------


def test_split_by_folders(tmp_path):
    put(tmp_path, *numbered("train/cat", 3), *numbered("train/dog", 1), "test/dog/x/1.png", "test/cat/1.png")
    splits = build(tmp_path)
    assert splits.class_names == ("cat", "dog") and splits.val is None
    assert splits.train.targets.tolist() == [0, 0, 0, 1]
    assert [file.decode() for file in splits.test.files] == ["test/cat/1.png", "test/dog/x/1.png"]
    put(tmp_path, "val/cat/1.png")
    method = ImageFolder(ImageFolder.Options(root=str(tmp_path)))
    assert method.provides == {"validation"} and names(method.build_data().val) == {"val/cat/1.png"}


def test_val_is_tested_on_without_a_folder_test(tmp_path):
    put(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "val/dog/2.png")
    method = ImageFolder(ImageFolder.Options(root=str(tmp_path)))
    splits = method.build_data()
    assert method.provides == set() and splits.val is None and names(splits.test) == {"val/cat/2.png", "val/dog/2.png"}
    assert "val is tested on" in splits.notes[0]


def test_classes_that_are_called_train_and_test(tmp_path):
    put(tmp_path, *numbered("train", 4), *numbered("tram", 4), *numbered("test", 4))
    refused(tmp_path, "'train', 'test' look like a split, beside 'tram'", "split=fraction", "split=folders")
    assert build(tmp_path, split="fraction").class_names == ("test", "train", "tram")
    (tmp_path / "test").rename(tmp_path / "bus")
    assert build(tmp_path).class_names == ("bus", "train", "tram")  # a railway: there is only one reading
    put(tmp_path / "two", *numbered("train", 4), *numbered("test", 4))
    assert build(tmp_path / "two", split="fraction").class_names == ("test", "train")
    refused(tmp_path / "two", "has no images", "4 images lie in the folder itself")


def test_folders_are_refused(tmp_path):
    put(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/cta/1.png")
    refused(tmp_path, "'cta'; did you mean 'cat'? Rename the folder")
    (tmp_path / "test/cta").rename(tmp_path / "test/owl")
    refused(tmp_path, "is called 'owl'. Rename the folder")
    (tmp_path / "test/owl/1.png").unlink()
    (tmp_path / "test/owl").rename(tmp_path / "test/cat")
    refused(tmp_path, "test has no images")
    refused(tmp_path, "data.options.val_fraction splits by fraction", "'train', 'test'", val_fraction=0.1)
    put(tmp_path / "only", "train/cat/1.png", "train/dog/1.png")
    refused(tmp_path / "only", "has the folders 'train', but", "split=fraction")
    put(tmp_path / "none", "cat/1.png", "dog/1.png")
    refused(tmp_path / "none", "has the folders 'cat', 'dog', but", split="folders")


# -- what is refused in both -------------------------------------------------------------------------------------------


def test_folders_without_images(tmp_path):
    refused(tmp_path / "nowhere", "is not a folder (data.options.root)")
    refused(tmp_path, "has no images", "jpg", "folders named by class")
    put(tmp_path, "1.png", "2.png")
    refused(tmp_path, "2 images lie in the folder itself")
    put(tmp_path, *numbered("cat", 3))
    refused(tmp_path, "one class folder, 'cat'")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "list.txt").write_text("")
    refused(tmp_path, f"{tmp_path / 'dog'} has no image", "1 of 2 class folders")


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    put(tmp_path, *numbered("cat", 3), *numbered("dog", 3))
    real = os.scandir

    def scandir(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # a test that runs as root may read everything
    refused(tmp_path, f"{tmp_path / 'dog'} cannot be read (Permission denied)")


def test_a_name_that_is_not_utf8(tmp_path):
    put(tmp_path, *numbered("cat", 3), *numbered("dog", 3))
    try:
        os.rename(tmp_path / "dog/00.png", os.fsencode(tmp_path / "dog") + b"/\xff.png")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    refused(tmp_path, "dog/\ufffd.png: the file's name is not UTF-8; rename it")


def test_fractions_that_leave_nothing(tmp_path):
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        ImageFolder.Options(root=str(tmp_path), test_fraction=0.6, val_fraction=0.4)


# -- folders that could be classes or splits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train, val, test",
    [
        ("Training", None, "Testing"),
        ("TRAIN", "Validation", "Test"),
        ("train", "valid", None),
        ("Train", "dev", "test"),
    ],
)
@pytest.mark.parametrize("beside", [(), ("predict/1.png", "unlabelled/x/1.png", "__MACOSX/train/1.png", ".git/1.png")])
def test_usual_names_of_splits(tmp_path, train, val, test, beside):
    put(tmp_path, *numbered(f"{train}/cat", 3), *numbered(f"{train}/dog", 2), *beside)
    for folder in (val, test):
        if folder:
            put(tmp_path, f"{folder}/cat/7.png", f"{folder}/dog/8.png")
    method = ImageFolder(ImageFolder.Options(root=str(tmp_path)))
    splits = method.build_data()
    assert splits.class_names == ("cat", "dog") and splits.train.targets.tolist() == [0, 0, 0, 1, 1]
    assert names(splits.test) == {f"{test or val}/cat/7.png", f"{test or val}/dog/8.png"}
    assert (splits.val is not None) == bool(val and test) == (method.provides == {"validation"})
    left_out = "further folders are left out, with so many images: 1 in 'predict', 1 in 'unlabelled'"
    assert any(note.endswith(left_out) for note in splits.notes) == bool(beside)


def test_unclear_folders_are_refused_with_both_readings(tmp_path):
    put(tmp_path / "a", "cat/1.png", "dog/1.png", "test/cat/1.png", "test/dog/1.png")
    refused(tmp_path / "a", "'test' looks like a split, beside 'cat', 'dog'", "split=fraction", "into a folder 'train'")
    put(tmp_path / "b", *numbered("train/cat", 2), *numbered("train/dog", 2), *numbered("cat", 2))
    refused(tmp_path / "b", "'train' looks like a split, beside 'cat'", "split=fraction", "add a folder 'test'")
    put(tmp_path / "c", *(f"seg_{split}/{name}/1.png" for split in ("train", "test") for name in ("cat", "dog")))
    refused(tmp_path / "c", "'seg_test', 'seg_train' may be splits or classes", "data.options.train=DIR")
    splits = build(tmp_path / "c", train="seg_train", test="seg_test")
    assert splits.class_names == ("cat", "dog") and names(splits.test) == {"seg_test/cat/1.png", "seg_test/dog/1.png"}
    put(
        tmp_path / "d",
        *(f"{site}/{name}/{i}.png" for site in ("east", "west") for name in ("cat", "dog") for i in "12"),
    )
    refused(tmp_path / "d", "'east', 'west' each hold the folders 'cat', 'dog'", "split=fraction", "train=east")
    assert build(tmp_path / "d", split="fraction").class_names == ("east", "west")
    put(tmp_path / "e", *(f"{s}/{name}/1.png" for s in ("train", "Training", "test") for name in ("cat", "dog")))
    refused(tmp_path / "e", "2 folders of train images, 'Training', 'train'; say which is meant", "test")
    assert len(build(tmp_path / "e", train="Training", test="test").train) == 2
    refused(tmp_path / "e", "names a folder for 'train', but", train="train")
    refused(tmp_path / "e", "tset is not a folder (data.options.test)", train="train", test="tset")


def test_what_classes_have_in_common_is_no_split(tmp_path):
    put(tmp_path / "a", *numbered("cat/images", 3), *numbered("dog/images", 3))  # as Tiny-ImageNet is
    assert build(tmp_path / "a").class_names == ("cat", "dog")
    put(tmp_path / "b", *(f"{name}/{year}/{i}.png" for name in "xyz" for year in ("19", "20") for i in "12"))
    put(tmp_path / "b", *(f"{name}/1.png" for name in "xyz"))  # with images of their own
    assert build(tmp_path / "b").class_names == ("x", "y", "z")


def test_a_wrapper_points_inside(tmp_path):
    put(tmp_path, *(f"archive/data/{split}/{name}/1.png" for split in ("train", "test") for name in ("cat", "dog")))
    refused(tmp_path, "one class folder, 'archive'", f"{tmp_path}/archive/data holds 'test', 'train': name that one")
    put(tmp_path / "own", *numbered("images", 3))
    (tmp_path / "own" / "labels.csv").write_text("")
    refused(tmp_path / "own", "if labels.csv beside it holds the labels, use image_table", "table=labels.csv")


def test_a_test_folder_without_classes(tmp_path):
    put(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/1.png", "test/2.png")
    refused(tmp_path, "test has no images", "2 images lie in the folder itself", f"data.options.root={tmp_path}/train")


def test_junk_is_left_out_and_named(tmp_path, monkeypatch):
    without = image_files.IMAGE_SUFFIXES - {".heic", ".heif"}
    monkeypatch.setattr(image_files, "IMAGE_SUFFIXES", without)  # where the extra is not installed
    put(tmp_path, *numbered("cat", 3), *numbered("dog", 3), "cat/@eaDir/00.png", "dog/thumbnails/1.png", "loose.png")
    put(tmp_path, "@eaDir/x/1.png", "dog/cat/1.png", "dog/more/2.png")
    for name in ("1.heic", "2.HEIC", "3.xcf", "Makefile"):
        (tmp_path / "cat" / name).write_text("")
    splits = build(tmp_path, val_fraction=0)
    assert splits.class_names == ("cat", "dog") and len(splits.train) + len(splits.test) == 8
    said = "\n".join(splits.notes)
    assert "4 files are left out" in said and "2 .heic, 1 .xcf, 1 without an ending; HEIC is read with" in said
    assert "3 folders of other programs are left out, first 'cat/@eaDir'" in said
    assert "1 images beside the class folders are left out, first loose.png" in said
    assert "1 folders in class folders are called like classes (1 in 'dog/cat')" in said
    put(tmp_path / "none", "cat/1.png")
    (tmp_path / "none" / "dog").mkdir()
    (tmp_path / "none" / "dog" / "1.heic").write_text("")
    refused(tmp_path / "none", "dog has no image", "it has other files: 1 .heic; HEIC is read with", "ltcore[heif]")


def test_no_more_than_six_endings_are_named_and_that_there_are_more_is_said():
    counts = {f".{letter}": number for number, letter in enumerate("abcdef", 1)}
    assert said_left_out(counts) == "6 .f, 5 .e, 4 .d, 3 .c, 2 .b, 1 .a"
    assert said_left_out(counts | {".g": 7}) == "7 .g, 6 .f, 5 .e, 4 .d, 3 .c, 2 .b, ..."


# -- groups ------------------------------------------------------------------------------------------------------------


def test_groups_stay_together(tmp_path):
    files = [f"{name}/p{patient:02}_{n}.png" for name in ("cat", "dog") for patient in range(10) for n in range(3)]
    put(tmp_path, *files)
    splits = build(tmp_path, group=r"(p\d+)_")
    where = {}
    for name in ("train", "val", "test"):
        for file in names(getattr(splits, name)):
            assert where.setdefault(file.split("/")[1].split("_")[0], name) == name
    counts = {name: torch.bincount(getattr(splits, name).targets).tolist() for name in ("train", "val", "test")}
    assert counts == {"train": [21, 21], "val": [3, 3], "test": [6, 6]} and splits.grouped
    assert not build(tmp_path).grouped and names(build(tmp_path).test) != names(splits.test)
    refused(tmp_path, "'q(.)' finds no group in 60 of 60 paths, first cat/p00_0.png", group="q(.)")
    with pytest.raises(ValidationError, match="no regular expression"):
        ImageFolder.Options(root=str(tmp_path), group="(")


def test_groups_that_cross_folders_are_refused(tmp_path):
    put(tmp_path, *(f"{split}/{name}/{name}{n}_1.png" for split, n in (("train", 1), ("test", 2)) for name in "cd"))
    assert build(tmp_path, group="([a-z][0-9])_").grouped
    put(tmp_path, "test/c/c1_2.png")
    refused(tmp_path, "1 groups have images in both train and test, first 'c1'", group="([a-z][0-9])_")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=1, max_size=40), st.integers(0, 3))
def test_groups_of_several_classes(images, seed):
    labels, units = [label for label, _ in images], [f"g{group}" for _, group in images]
    parts = split_images(labels, units, Fractions(0.2, 0.1, seed=seed))
    assert sorted(i for each in parts.values() for i in each) == list(range(len(images)))
    groups = [{units[i] for i in each} for each in parts.values()]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert {labels[i] for i in parts["train"]} == set(labels)  # every class is trained on


def test_a_small_class_validates_nothing_and_others_do(tmp_path):
    put(tmp_path, *numbered("cat", 20), *numbered("dog", 9))
    counts = torch.bincount(build(tmp_path, val_min=10).val.targets, minlength=2).tolist()
    assert counts == [2, 0] and torch.bincount(build(tmp_path).val.targets, minlength=2).tolist() == [2, 1]
