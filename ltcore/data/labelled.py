"""Any labelled images, read as a set to evaluate on: class folders, a table, a list, or a recipe's own test images.

Their classes are joined by name with those of the run. A class of theirs that the run does not know is refused with
its name, because no model can be right about it. If they lack a class of the run, this is no mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ltcore.contract.splits import ArraySplit, StreamedSplit
from ltcore.data.class_names import joined_by_name
from ltcore.data.image_files import check_files, file_split, find_images, subfolders
from ltcore.data.image_list import read_list
from ltcore.data.image_table import classes_of_rows, file_column
from ltcore.data.tables import read_table
from ltcore.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Reads the test images of a recipe: a split and its class names.
ReadRecipe = Callable[[Path], tuple[ArraySplit | StreamedSplit, Sequence[str]]]


@dataclass(frozen=True)
class Labelled:
    """Images with labels of the run.

    Attributes:
        split: the images; labels are the run's.
        notes: what the user should be told of how they were read, a sentence each.
    """

    split: ArraySplit | StreamedSplit
    notes: tuple[str, ...] = ()


def read_labelled(path: Path, class_names: Sequence[str], read_recipe: ReadRecipe) -> Labelled:
    """Read labelled images.

    Args:
        path: a folder with one folder per class; a table (CSV, TSV, or COCO's JSON) of files and labels. Or a list
            (``.txt``) of lines 'relative/path label', whose paths are relative to where it lies; or a recipe, whose
            test images are taken.
        class_names: the run's, in label order.
        read_recipe: reads the test images of a recipe.

    Raises:
        DataError: nothing of this is there, images are missing, or a class is not one of the run's.
    """
    if path.is_dir():
        return _folders(path, class_names)
    if not path.is_file():
        raise DataError(f"{path} is not there; name a folder with one folder per class, a table, a list, or a recipe")
    if path.suffix in (".yaml", ".yml"):
        split, own = read_recipe(path)
        labels = joined_by_name(str(path), split.targets.numpy(), own, "the run", class_names)
        if isinstance(split, ArraySplit):
            return Labelled(ArraySplit(split.images, torch.from_numpy(labels)))
        return Labelled(_Relabelled(split, torch.from_numpy(labels)))
    if path.suffix == ".txt":
        listed = read_list(path)
        if max(listed.labels) >= len(class_names):
            at = next(i for i, label in enumerate(listed.labels) if label >= len(class_names))
            raise listed.error(at, f"the label is {listed.labels[at]}, but the run has {len(class_names)} classes")
        check_files(path.parent, listed.files, str(path), "Put the list where its paths begin")
        return Labelled(file_split(path.parent, listed.files, listed.labels))
    if path.suffix.lower() not in (".csv", ".tsv", ".json"):
        raise DataError(
            f"{path}: this is no folder, no table (.csv, .tsv, .json), no list (.txt) and no recipe (.yaml)"
        )
    table = read_table(path)
    column = file_column(table, None)
    files = [cells[column].removeprefix("./") for cells in table.rows]
    labelled = _by_name(path, classes_of_rows(table, None, {column}), class_names)
    check_files(path.parent, files, str(path), "Put the table where its paths begin")
    return Labelled(file_split(path.parent, files, labelled))


def _folders(root: Path, class_names: Sequence[str]) -> Labelled:
    found = {name: find_images(root / name) for name in subfolders(root)}
    names = [name for name, images in found.items() if images.files]
    if not names:
        loose = len(find_images(root, deep=False).files)
        hint = f"; {loose} images lie in the folder itself, and nothing says their classes" if loose else ""
        raise DataError(f"{root} has no images in folders named by class{hint}")
    labels = dict(zip(names, _by_name(root, names, class_names), strict=True))
    pairs = [(f"{name}/{file}", labels[name]) for name in names for file in found[name].files]
    left_out = sum(images.left_out.total() for images in found.values())
    notes = (f"{left_out} files in {root} are hidden, or no images that are read; they are left out",) * bool(left_out)
    return Labelled(file_split(root, [file for file, _ in pairs], [label for _, label in pairs]), notes)


def _by_name(source: Path, own: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """The run's label for each of N class names."""
    known = sorted(set(own))
    place = {name: number for number, name in enumerate(known)}
    numbers = np.array([place[name] for name in own], dtype=np.int64)
    joined: list[int] = joined_by_name(str(source), numbers, known, "the run", class_names).tolist()
    return joined


@dataclass(frozen=True)
class _Relabelled:
    """A streamed split with other labels."""

    images: StreamedSplit
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, index: torch.Tensor) -> _Relabelled:
        """See `StreamedSplit`."""
        return _Relabelled(self.images.subset(index), self.targets[index])

    def open(self, index: int) -> Image:
        """See `StreamedSplit`."""
        return self.images.open(index)

    def name(self, index: int) -> str:
        """See `StreamedSplit`."""
        return self.images.name(index)
