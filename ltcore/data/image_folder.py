"""A person's own images: a folder a class, split by fraction, or a folder a split with a folder a class in each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ltcore.contract.hook import hookimpl
from ltcore.contract.method import Method, Options
from ltcore.contract.splits import DataSplits, FileSplit
from ltcore.data.image_files import IMAGE_SUFFIXES, Found, file_split, find_images, spell_out, subfolders
from ltcore.data.image_list import imagenet_like
from ltcore.errors import DataError, listed, nearest

SPLITS = ("train", "val", "test")


class ImageFolderOptions(Options):
    """Options of `ImageFolder`."""

    root: str
    """Folder with a folder a class, or with the folders `train`, `val` and `test` that have a folder a class each."""
    split: Literal["auto", "fraction", "folders"] = "auto"
    """`fraction` splits each class by `test_fraction` and `val_fraction`; `folders` takes the folders `train`, `val`
    and `test`; `auto` takes `folders` where the root holds `train`, `val` or `test`, and no other folder."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of each class's images that is tested on, for `fraction`."""
    val_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of each class's images that is held out for validation, for `fraction`; 0 for none."""
    split_seed: int = 0
    """Another seed is another split, for `fraction`; the run's seed does not change it."""

    @model_validator(mode="after")
    def _leaves_some(self) -> ImageFolderOptions:
        if self.test_fraction + self.val_fraction >= 1:
            raise ValueError("test_fraction and val_fraction together leave nothing to train on; lower one")
        return self


class ImageFolder(Method[ImageFolderOptions]):
    """Images in a folder a class, at any depth below it; hidden files and files that are no images are ignored."""

    summary = "your own images, a folder a class; split by fraction, or by the folders train, val and test"

    def __init__(self, options: ImageFolderOptions) -> None:
        super().__init__(options)  # no defaults: `root` is required

    @property
    def provides(self) -> AbstractSet[str]:
        """Validation images, where a fraction is held out or there is a folder of them beside one of test images."""
        root = Path(self.options.root).expanduser()
        try:
            val = (root / "val").is_dir() and (root / "test").is_dir() if self._by_folders(root) else self._has_fraction
        except DataError:
            return frozenset()  # build_data says what is wrong with it
        return {"validation"} if val else frozenset()

    @property
    def _has_fraction(self) -> bool:
        return bool(self.options.val_fraction > 0)

    def _by_folders(self, root: Path) -> bool:
        if self.options.split != "auto":
            return bool(self.options.split == "folders")
        return bool(found := subfolders(root)) and set(found) <= set(SPLITS)

    @hookimpl
    def build_data(self) -> DataSplits:
        """The splits; labels follow the sorted names of the training split's class folders."""
        root = Path(self.options.root).expanduser()
        if not root.is_dir():
            raise DataError(f"{root.absolute()} is not a folder (data.options.root); it must hold a folder a class")
        return self._read_folders(root) if self._by_folders(root) else self._split_classes(root)

    def _split_classes(self, root: Path) -> DataSplits:
        o = self.options
        found = _classes(root)
        parts: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
        for label, (name, images) in enumerate(found.items()):
            files = [f"{name}/{file}" for file in images.files]
            chosen = split_class(files, o.test_fraction, o.val_fraction, o.split_seed)
            for split, members in zip(SPLITS, chosen, strict=True):
                parts[split] += [(file, label) for file in members]
        if not parts["test"]:
            raise DataError(f"{root.absolute()}: every class has a single image, so that none is left to test on")
        splits = {split: _file_split(root, members) for split, members in parts.items() if members}
        untested = [name for name, images in found.items() if len(images.files) == 1]
        notes = _ignored(root, found)
        if untested:
            some = f"{len(untested)}, first {listed(untested[:3])}"
            notes.append(f"classes of one image, which is trained on and none tested: {some}")
        return replace(imagenet_like(splits), class_names=tuple(found), notes=tuple(notes))

    def _read_folders(self, root: Path) -> DataSplits:
        present = [split for split in SPLITS if (root / split).is_dir()]
        if "train" not in present or len(present) == 1:
            raise DataError(
                f"{root.absolute()} has the folders {listed(subfolders(root))}, but a split by folders needs 'train' "
                "and 'test' ('val' may be left out); data.options.split=fraction takes each folder for a class"
            )
        if unused := sorted(self.options.model_fields_set & {"test_fraction", "val_fraction", "split_seed"}):
            raise DataError(
                f"data.options.{unused[0]} splits by fraction, but {root.absolute()} is split by its folders "
                f"{listed(present)}; remove it, or set data.options.split=fraction"
            )
        found = {split: _classes(root / split, required=split == "train") for split in present}
        classes = list(found["train"])
        splits: dict[str, FileSplit] = {}
        notes: list[str] = []
        for split, folders in found.items():
            for name in folders:
                if name not in found["train"]:
                    raise DataError(
                        f"{(root / split / name).absolute()}: no class of {(root / 'train').absolute()} is called "
                        f"'{name}'{nearest(name, classes) or '.'} Rename the folder, add training images of it, or "
                        "remove it"
                    )
            members = [
                (f"{split}/{name}/{file}", classes.index(name))
                for name, images in folders.items()
                for file in images.files
            ]
            if not members:
                raise DataError(f"{(root / split).absolute()} has no images ({_suffixes()}) in its class folders")
            splits[split] = _file_split(root, members)
            notes += _ignored(root / split, folders)
        if "test" not in splits:
            notes.append("there is no folder test: val is tested on, and data.holdout takes validation images")
            splits["test"] = splits.pop("val")
        return replace(imagenet_like(splits), class_names=tuple(classes), notes=tuple(notes))


def split_class(
    files: Sequence[str], test_fraction: float, val_fraction: float, seed: int
) -> tuple[list[str], list[str], list[str]]:
    """Training, validation and test images of one class, each in the given order.

    The files are ranked by a hash of (`seed`, path); the first ``round(test_fraction * n)`` are tested on, the next
    ``round(val_fraction * n)`` validated on, halves rounded up. So the split depends on nothing but the names: an
    image that is added ranks among the others without reordering them, and moves three of them at most, those next
    to a boundary. A threshold on the hash itself would move none, but leaves the smallest classes without test or
    training images, which is where a long tail is measured. A class of two images or more has at least one test image,
    one of three or more a validation image too, and each keeps one to train on.

    Args:
        files: n paths of one class, relative to the root.
        test_fraction: share of them, more than 0 and less than 1.
        val_fraction: share of them, from 0 to less than 1.
        seed: another seed is another ranking.
    """
    n = len(files)
    reserved = 1 if val_fraction and n >= 3 else 0
    test = min(max(int(test_fraction * n + 0.5), 1), n - 1 - reserved)
    val = min(max(int(val_fraction * n + 0.5), reserved), n - 1 - test)
    ranked = sorted(
        files, key=lambda file: hashlib.blake2b(f"{seed}\0{file}".encode(errors="surrogateescape")).digest()
    )
    tested, held = set(ranked[:test]), set(ranked[test : test + val])
    return (
        [file for file in files if file not in tested and file not in held],
        [file for file in files if file in held],
        [file for file in files if file in tested],
    )


def _classes(root: Path, required: bool = True) -> dict[str, Found]:
    """The images of each class folder, by its name in sorted order; `required`: two classes, none without images."""
    found = {name: find_images(root / name) for name in subfolders(root)}
    if not required:
        return found
    if not any(images.files for images in found.values()):
        loose = len(find_images(root).files)
        hint = f"; {loose} images lie in the folder itself: move them into a folder a class" if loose else ""
        raise DataError(f"{root.absolute()} has no images ({_suffixes()}) in folders named by class{hint}")
    if empty := [name for name, images in found.items() if not images.files]:
        raise DataError(
            f"{(root / empty[0]).absolute()} has no image ({_suffixes()}), and so {len(empty)} of {len(found)} class "
            "folders; remove the folder, or put images into it"
        )
    if len(found) < 2:
        raise DataError(f"{root.absolute()} has one class folder, '{next(iter(found))}'; a classifier needs two")
    return found


def _file_split(root: Path, members: Sequence[tuple[str, int]]) -> FileSplit:
    return file_split(root, [file for file, _ in members], [label for _, label in members])


def _ignored(root: Path, found: dict[str, Found]) -> list[str]:
    counts = {name: images.ignored for name, images in found.items() if images.ignored}
    if not counts:
        return []
    return [f"{root}: {sum(counts.values())} files that are hidden or no images are ignored ({spell_out(counts)})"]


def _suffixes() -> str:
    return ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
