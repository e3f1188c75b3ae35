"""A person's own images: one folder per class, split by fraction, or one folder per split with class folders in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from ltcore.contract.hook import hookimpl
from ltcore.contract.method import Method
from ltcore.contract.splits import DataSplits
from ltcore.data.fractions import FractionOptions, Fractions, groups_of, refuse_crossing, split_images
from ltcore.data.image_files import (
    IMAGE_SUFFIXES,
    Found,
    file_split,
    find_images,
    said_left_out,
    spell_out,
    subfolders,
)
from ltcore.data.image_list import imagenet_like
from ltcore.data.split_folders import SPLITS, Layout, find_layout, inside
from ltcore.errors import DataError, listed, nearest


class ImageFolderOptions(FractionOptions):
    """Options of `ImageFolder`."""

    root: str
    """Folder with one folder per class, or with the folders `train`, `val` and `test` that have one per class each."""
    split: Literal["auto", "fraction", "folders"] = "auto"
    """`fraction` splits each class by `test_fraction` and `val_fraction`; `folders` takes the folders `train`, `val`
    and `test`, or those that are called alike; `auto` takes what the folders look like, and refuses what is unclear."""
    train: str | None = None
    """Folder of the training images, relative to the root, where its name does not say it."""
    val: str | None = None
    """Folder of the validation images, likewise."""
    test: str | None = None
    """Folder of the test images, likewise."""
    group: str | None = None
    """Regular expression that finds in an image's path, relative to the root, which group it is of (patient, burst):
    the first group in brackets, or all that matches. No two splits share a group."""

    @field_validator("group")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"this is no regular expression ({error})") from error
        return value

    @property
    def named(self) -> dict[str, str]:
        """The folders of splits that are named."""
        return {split: folder for split in SPLITS if (folder := getattr(self, split)) is not None}


class ImageFolder(Method[ImageFolderOptions]):
    """Images in one folder per class, at any depth below it; hidden files and files that are no images are ignored."""

    summary = "your own images, one folder per class; split by fraction, or by the folders train, val and test"

    def __init__(self, options: ImageFolderOptions) -> None:
        super().__init__(options)  # no defaults: `root` is required

    @property
    def provides(self) -> AbstractSet[str]:
        """Validation images, where a fraction is held out or there is a folder of them beside one of test images."""
        try:
            layout = self._layout(Path(self.options.root).expanduser())
        except DataError:
            return frozenset()  # build_data says what is wrong with it
        val = layout.validates if layout.splits else self.options.val_fraction > 0
        return {"validation"} if val else frozenset()

    def _layout(self, root: Path) -> Layout:
        return find_layout(root, self.options.split, self.options.named)

    @hookimpl
    def build_data(self) -> DataSplits:
        """The splits; labels follow the sorted names of the training split's class folders."""
        root = Path(self.options.root).expanduser()
        if not root.is_dir():
            raise DataError(f"{root.absolute()} is not a folder (data.options.root); it must hold one folder per class")
        layout = self._layout(root)
        return self._read_folders(root, layout) if layout.splits else self._split_classes(root)

    def _split_classes(self, root: Path) -> DataSplits:
        o = self.options
        found = _classes(root)
        members = _Members.of(found.folders)
        units = members.files if o.group is None else groups_of(members.files, o.group, "data.options.group")
        chosen = split_images(members.labels, units, Fractions.of(o))
        if not chosen["test"]:
            what = "a single image" if o.group is None else "a single group of images"
            raise DataError(f"{root.absolute()}: every class has {what}, so that none is left to test on")
        splits = {
            split: file_split(root, [members.files[i] for i in at], [members.labels[i] for i in at])
            for split, at in chosen.items()
            if at
        }
        notes = found.notes()
        tested = set(splits["test"].targets.tolist())
        if untested := [name for label, name in enumerate(found.folders) if label not in tested]:
            what = "image" if o.group is None else "image or one group"
            notes.append(
                f"classes of one {what}, which is trained on and none tested: {len(untested)}, first "
                f"{listed(untested[:3])}"
            )
        return replace(
            imagenet_like(splits), class_names=tuple(found.folders), notes=tuple(notes), grouped=o.group is not None
        )

    def _read_folders(self, root: Path, layout: Layout) -> DataSplits:
        if unused := self.options.asked_for():
            raise DataError(
                f"data.options.{unused[0]} splits by fraction, but {root.absolute()} is split by its folders "
                f"{listed(layout.splits.values())}; remove it, or set data.options.split=fraction"
            )
        train = root / layout.splits["train"]
        found = {split: _classes(root / folder, split == "train") for split, folder in layout.splits.items()}
        classes = list(found["train"].folders)
        files: dict[str, Sequence[str]] = {}
        splits, notes = {}, []
        for split, folder in layout.splits.items():
            for name in found[split].folders:
                if name not in classes:
                    raise DataError(
                        f"{(root / folder / name).absolute()}: no class of {train.absolute()} is called "
                        f"'{name}'{nearest(name, classes) or '.'} Rename the folder, add training images of it, or "
                        "remove it"
                    )
            members = _Members.of(found[split].folders, classes, f"{folder}/")
            if not members.files:
                loose = len(find_images(root / folder, deep=False).files)
                hint = (
                    f"; {loose} images lie in the folder itself, and nothing says their classes: move them into "
                    f"folders a class, or take data.options.root={train.absolute()}, which is split by fraction then"
                )
                raise DataError(
                    f"{(root / folder).absolute()} has no images ({_suffixes()}) in its class folders"
                    f"{hint if loose else ''}"
                )
            splits[split], files[split] = file_split(root, members.files, members.labels), members.files
            notes += found[split].notes()
        if self.options.group is not None:
            groups = {split: groups_of(each, self.options.group, "data.options.group") for split, each in files.items()}
            refuse_crossing(groups, str(root.absolute()), "move all images of a group into one of the folders")
        if layout.others:
            some = {name: len(find_images(root / name).files) for name in layout.others}
            notes.append(f"{root}: further folders are left out, with so many images: {spell_out(some)}")
        if "test" not in splits:
            notes.append(
                f"there is no folder test: {layout.splits['val']} is tested on, and data.holdout takes validation "
                "images"
            )
            splits["test"] = splits.pop("val")
        return replace(
            imagenet_like(splits),
            class_names=tuple(classes),
            notes=tuple(notes),
            grouped=self.options.group is not None,
        )


@dataclass(frozen=True)
class _Members:
    """N images: their paths relative to the root, and their labels."""

    files: list[str]
    labels: list[int]

    @classmethod
    def of(cls, folders: Mapping[str, Found], classes: Sequence[str] | None = None, prefix: str = "") -> _Members:
        label_of = {name: label for label, name in enumerate(classes or folders)}
        pairs = [
            (f"{prefix}{name}/{file}", label_of[name]) for name, images in folders.items() for file in images.files
        ]
        return cls([file for file, _ in pairs], [label for _, label in pairs])


@dataclass(frozen=True)
class _ClassFolders:
    """The images of each class folder, by its name in sorted order; and what else lies in the folder."""

    root: Path
    folders: dict[str, Found]
    beside: Found

    def notes(self) -> list[str]:
        """What is left out, or may not be meant so, a sentence each."""
        notes = []
        left_out = sum((images.left_out for images in self.folders.values()), Counter[str]())
        if left_out:
            each = {name: images.left_out.total() for name, images in self.folders.items() if images.left_out}
            notes.append(
                f"{self.root}: {left_out.total()} files are left out, as hidden or no images that are read: "
                f"{said_left_out(left_out)} ({spell_out(each)})"
            )
        junk = [f"{name}/{path}" for name, images in self.folders.items() for path in images.junk] + [*self.beside.junk]
        if junk:
            notes.append(f"{self.root}: {len(junk)} folders of other programs are left out, first '{junk[0]}'")
        if loose := len(self.beside.files):
            notes.append(
                f"{self.root}: {loose} images beside the class folders are left out, first {self.beside.files[0]}"
            )
        nested = {
            f"{name}/{inner}": number
            for name, images in self.folders.items()
            for inner, number in Counter(file.split("/")[0] for file in images.files if "/" in file).items()
            if inner in self.folders
        }
        if nested:
            first = next(iter(nested))
            notes.append(
                f"{self.root}: {len(nested)} folders in class folders are called like classes ({spell_out(nested)}); "
                f"their images count as those of the outer class, '{first.split('/')[0]}' for the first"
            )
        return notes


def _classes(root: Path, required: bool = True) -> _ClassFolders:
    """The images of each class folder; `required`: two classes, none without images."""
    found = {name: find_images(root / name) for name in subfolders(root)}
    read = _ClassFolders(root, found, find_images(root, deep=False))
    if not required:
        return read
    if not any(images.files for images in found.values()):
        left_out = sum((images.left_out for images in found.values()), Counter(read.beside.left_out))
        loose = len(read.beside.files)
        hint = f"; {loose} images lie in the folder itself: move them into one folder per class" if loose else ""
        hint += f"; it has other files: {said_left_out(left_out)}" if left_out else ""
        hint += _table(root) if loose else ""
        raise DataError(f"{root.absolute()} has no images ({_suffixes()}) in folders named by class{hint}")
    if empty := [name for name, images in found.items() if not images.files]:
        left_out = found[empty[0]].left_out
        hint = f"; it has other files: {said_left_out(left_out)}" if left_out else ""
        raise DataError(
            f"{(root / empty[0]).absolute()} has no image ({_suffixes()}), and so {len(empty)} of {len(found)} class "
            f"folders{hint}; remove the folder, or put images into it"
        )
    if len(found) < 2:
        only = next(iter(found))
        raise DataError(
            f"{root.absolute()} has one class folder, '{only}'; a classifier needs two{inside(root) or _table(root)}"
        )
    return read


def _table(root: Path) -> str:
    """A hint for images that lie beside a table, which may hold their labels; or an empty string."""
    tables = sorted(path.name for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
    if not tables:
        return ""
    return (
        f"; if {tables[0]} beside it holds the labels, use image_table with data.options.root={root.absolute()} and "
        f"data.options.table={tables[0]}"
    )


def _suffixes() -> str:
    return ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
