"""Whether the folders of a folder are splits or classes: read as meant, or refused with both readings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ltcore.data.image_files import is_image, subfolders
from ltcore.errors import DataError, listed

SPLITS = ("train", "val", "test")
#: Names of splits, in any case.
NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
#: Split names that stand as a word within a longer name, such as ``seg_train`` or ``test-2``.
_WORD = re.compile(r"(?:^|[^a-z])(?:" + "|".join(name for names in NAMES.values() for name in names) + r")(?:[^a-z]|$)")

Reading = Literal["auto", "fraction", "folders"]


@dataclass(frozen=True)
class Layout:
    """How a folder is read.

    Attributes:
        splits: the folder of each split, relative to the root, in the order of `SPLITS`; empty where each folder is a
            class.
        others: names of further folders, which are not read.
    """

    splits: Mapping[str, str]
    others: tuple[str, ...] = ()

    @property
    def validates(self) -> bool:
        """Whether there is a split of validation images beside one of test images."""
        return "val" in self.splits and "test" in self.splits


def split_of(name: str) -> str | None:
    """``train``, ``val`` or ``test`` where a name is a usual one of theirs, in any case; else None."""
    return next((split for split, names in NAMES.items() if name.lower() in names), None)


def find_layout(root: Path, reading: Reading, named: Mapping[str, str]) -> Layout:
    """Whether a folder's folders are splits or classes.

    Args:
        root: the folder.
        reading: ``fraction``: they are classes; ``folders``: they are splits; ``auto``: what they look like.
        named: the folders of splits that the user names, relative to the root; they are the splits then.

    Raises:
        DataError: it cannot be read, splits are asked for and not there, or both readings are possible.
    """
    names = subfolders(root)
    if named:
        return _as_named(root, names, named)
    if reading == "fraction":
        return Layout({})
    alike: dict[str, list[str]] = {split: [n for n in names if split_of(n) == split] for split in SPLITS}
    found = [name for each in alike.values() for name in each]
    others = tuple(name for name in names if name not in found)
    if reading == "auto" and not found:
        _refuse_unclear(root, names)
        return Layout({})
    inner = {name: subfolders(root / name) for name in found}
    if reading == "auto" and others and not _are_splits(alike, inner):
        if found == alike["train"] and not any(inner.values()):
            return Layout({})  # a railway: 'train' is one class among others
        raise DataError(_both_readings(root, alike, others))
    for split, same in alike.items():
        if len(same) > 1:
            raise DataError(
                f"{root.absolute()} has {len(same)} folders of {split} images, {listed(same)}; say which is meant: "
                f"data.options.train={(alike['train'] or ['DIR'])[0]} and data.options.{split}={same[0]}, or "
                "data.options.split=fraction, which takes each folder for a class"
            )
    splits = {split: same[0] for split, same in alike.items() if same}
    if "train" not in splits or len(splits) == 1:
        raise DataError(
            f"{root.absolute()} has the folders {listed(names)}, but a split by folders needs 'train' and 'test' "
            "('val' may be left out; data.options.train=DIR and data.options.test=DIR name others); "
            "data.options.split=fraction takes each folder for a class"
        )
    return Layout(splits, others)


def inside(folder: Path) -> str:
    """A hint for a folder that holds a single one, which is only wrapped around what is meant; or an empty string."""
    depth, found = folder, list[str]()
    while len(found := subfolders(depth)) == 1 and not _has_images(depth):
        depth = depth / found[0]
    if depth == folder or len(found) < 2:
        return ""
    return f"; its folder {depth.absolute()} holds {_some(found)}: name that one"


def _as_named(root: Path, names: Sequence[str], named: Mapping[str, str]) -> Layout:
    if "train" not in named or len(named) == 1:
        raise DataError(
            f"data.options names a folder for {listed(named)}, but a split by folders needs both train and test "
            "(or val); name them, too"
        )
    for split, folder in named.items():
        if not (root / folder).is_dir():
            raise DataError(
                f"{(root / folder).absolute()} is not a folder (data.options.{split}); {root.absolute()} has the "
                f"folders {listed(names)}"
            )
    tops = {folder.split("/")[0] for folder in named.values()}
    return Layout({s: named[s] for s in SPLITS if s in named}, tuple(n for n in names if n not in tops))


def _are_splits(alike: Mapping[str, Sequence[str]], inner: Mapping[str, Sequence[str]]) -> bool:
    """Whether there are folders of training and of held-out images that have classes in common."""
    train = {name for folder in alike["train"] for name in inner[folder]}
    held = {name for split in ("val", "test") for folder in alike[split] for name in inner[folder]}
    return len(train) >= 2 and bool(train & held)


def _both_readings(root: Path, alike: Mapping[str, Sequence[str]], others: Sequence[str]) -> str:
    found = [name for same in alike.values() for name in same]
    start = f"{root.absolute()}: {listed(found)} look{'s' * (len(found) == 1)} like a split, beside {_some(others)}. "
    as_classes = "For a class each, set data.options.split=fraction (init: --split fraction). "
    if alike["train"] and len(found) > 1:
        return (
            f"{start}{as_classes}For splits, with {_some(others)} left out, set data.options.split=folders "
            "(init: --split folders)"
        )
    if alike["train"]:
        return f"{start}{as_classes}For splits, add a folder 'test' with the same classes as {listed(found)}"
    return f"{start}{as_classes}For a split, move the folders of the training images' classes into a folder 'train'"


def _refuse_unclear(root: Path, names: Sequence[str]) -> None:
    """Refuse folders that are called like splits, more or less, or that share their subfolders, as splits do."""
    resembling = [name for name in names if _WORD.search(name.lower())]
    if len(resembling) >= 2 and any("train" in name.lower() for name in resembling):
        raise DataError(
            f"{root.absolute()}: {_some(resembling)} may be splits or classes. For splits, name their folders: "
            "data.options.train=DIR and data.options.test=DIR, relative to the root. For a class each, set "
            "data.options.split=fraction (init: --split fraction)"
        )
    inner = [set(subfolders(root / name)) for name in names]
    nested = [set_ for name, set_ in zip(names, inner, strict=True) if set_ and not _has_images(root / name)]
    if len(nested) < 2 or len(nested) < len(names) / 2:
        return
    common = sorted(set.intersection(*nested))
    if len(common) >= 2 and len(common) >= max(map(len, nested)) / 2:
        raise DataError(
            f"{root.absolute()}: {_some(names)} each hold the folders {_some(common)}, so either may be the classes. "
            f"For {_some(names)}, set data.options.split=fraction (init: --split fraction). For {_some(common)}, take "
            f"one of them as data.options.root, or name splits among them: data.options.train={names[0]} and "
            f"data.options.test={names[1]}"
        )


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) for entry in entries)


def _some(names: Sequence[str]) -> str:
    return listed(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
