"""iNaturalist 2017 and 2018: photographs of species, named by their competitions' annotation files."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from ltcore.contract.hook import hookimpl
from ltcore.contract.splits import DataSplits
from ltcore.data.class_names import joined_by_name
from ltcore.data.coco import read_coco
from ltcore.data.counts import fitted_counts
from ltcore.data.image_list import ListedSplit, listed_splits, read_list
from ltcore.data.large_sets import Collection, ListedOptions, Published, find_lists, lists_folder
from ltcore.errors import DataError


class _INaturalist(Collection[ListedOptions]):
    """A competition's training and validation images; the latter are tested on, since test labels are not public."""

    licence = "for non-commercial use, and each photograph has a licence of its own"
    stored = (800, 600)
    approximate = "The class counts are a curve with the published number of classes, total and both ends"
    #: Split lists that may stand in for the annotations, by split; empty where there are none.
    lists: ClassVar[dict[str, str]] = {}
    annotations: ClassVar[dict[str, str]]

    def counts(self) -> tuple[int, ...]:
        """A curve fitted to the published totals, from the largest class to the smallest."""
        published = self.published
        return fitted_counts(published.num_classes, published.images["train"], published.largest, published.smallest)

    @hookimpl
    def build_data(self) -> DataSplits:
        """Training and validation split, the latter as test split; from the lists, else the annotations."""
        root = self.root()
        if self.lists and (where := find_lists(self, root, self.lists)) is not None:
            lists, names = {split: read_list(where / name) for split, name in self.lists.items()}, None
        elif (where := find_lists(self, root, self.annotations)) is not None:
            lists, names = read_annotations({split: where / name for split, name in self.annotations.items()})
        else:
            pairs = [" and ".join(files.values()) for files in (self.annotations, self.lists) if files]
            found = f"neither {pairs[0]} nor {pairs[1]} found" if self.lists else f"{pairs[0]} not found"
            raise DataError(f"{self.title}: {found} in {lists_folder(self, root).absolute()}. {self.advice()}")
        return self.check_totals(listed_splits(root, lists, names, self.missing_advice()))


class INaturalist2017(_INaturalist):
    """Species: 5089 classes, 579,184 training images, 3919 to 9 per class; tested on the 95,986 validation images."""

    summary = "species, 5089 classes, 3919..9 training images; iNaturalist 2017, about 186 GB, non-commercial"
    title = "iNaturalist 2017"
    source = (
        "the iNaturalist competitions' repository of visipedia, folder 2017 (train_val_images.tar.gz, "
        "train_val2017.zip)"
    )
    size = "about 186 GB"
    layout = "train_val_images/GROUP/SPECIES/*.jpg, and train2017.json and val2017.json"
    folder = "inaturalist2017"
    annotations: ClassVar[dict[str, str]] = {"train": "train2017.json", "test": "val2017.json"}
    # The ends are those of the class-balanced loss's paper, which has their ratio, 435.44.
    published = Published({"train": 579_184, "test": 95_986}, 5089, 3919, 9)


class INaturalist2018(_INaturalist):
    """Species: 8142 classes, 437,513 training images, 1000 to 2 per class; tested on the 24,426 validation images."""

    summary = "species, 8142 classes, 1000..2 training images; iNaturalist 2018, about 120 GB, non-commercial"
    title = "iNaturalist 2018"
    source = (
        "the iNaturalist 2018 competition's repository of visipedia (train_val2018.tar.gz, train2018.json, "
        "val2018.json), or lists of the same splits from repositories of long-tailed recognition"
    )
    size = "about 120 GB"
    layout = (
        "train_val2018/GROUP/NUMBER/*.jpg, and either train2018.json and val2018.json, or iNaturalist18_train.txt and "
        "iNaturalist18_val.txt"
    )
    folder = "inaturalist2018"
    lists: ClassVar[dict[str, str]] = {"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"}
    annotations: ClassVar[dict[str, str]] = {"train": "train2018.json", "test": "val2018.json"}
    published = Published({"train": 437_513, "test": 24_426}, 8142, 1000, 2)


def read_annotations(paths: dict[str, Path]) -> tuple[dict[str, ListedSplit], list[str] | None]:
    """Splits from annotation files of COCO's form, as iNaturalist's competitions publish them.

    A file has ``images`` (``id``, ``file_name``), ``annotations`` (``image_id``, ``category_id``) and perhaps
    ``categories`` (``id``, ``name``). Labels follow the sorted category ids of the first file: its categories, or
    else those that its annotations name.

    Args:
        paths: by split, the training split first.

    Returns:
        The splits, and the category names in label order; None where they are absent or not all different.

    Raises:
        DataError: a file is no such JSON, or an image has no category, or two, or one that the first file lacks.
    """
    lists: dict[str, ListedSplit] = {}
    first, first_titles = next(iter(paths.values())), dict[int, str]()
    place: dict[int, int] = {}
    names: list[str] | None = None
    for split, path in paths.items():
        files, categories, titles = read_coco(path)
        if not lists:
            first_titles, ids = titles, sorted(titles or set(categories))
            place = {category: label for label, category in enumerate(ids)}
            if unused := sorted(set(ids) - set(categories)):
                raise DataError(
                    f"{path}: {len(unused)} categories have no image, first {_named(unused[0], titles)}; remove them "
                    "from 'categories', or add images of them"
                )
            if titles and len(set(titles.values())) == len(titles):
                names = [titles[category] for category in ids]
        if names and titles and titles != first_titles:
            labels = _joined(path, categories, titles, first, names)
        else:
            for file, category in zip(files, categories, strict=True):
                if category not in place:
                    raise DataError(
                        f"{path}: {file} has category {_named(category, titles)}, which {first} does not have"
                    )
            labels = [place[category] for category in categories]
        lists[split] = ListedSplit(path, files, labels, range(1, len(files) + 1))
    return lists, names


def _named(category: int, titles: dict[int, str]) -> str:
    return f"{category} ('{titles[category]}')" if category in titles else str(category)


def _joined(path: Path, categories: list[int], titles: dict[int, str], first: Path, names: list[str]) -> list[int]:
    """Labels of a file whose category ids stand for other names than those of the first file."""
    ids = sorted(titles)
    place = {category: label for label, category in enumerate(ids)}
    if unnamed := [category for category in categories if category not in titles]:
        raise DataError(f"{path}: an annotation is of category {unnamed[0]}, which is not among its categories")
    labels = np.array([place[category] for category in categories], dtype=np.int64)
    joined = joined_by_name(str(path), labels, [titles[i] for i in ids], str(first), names)
    return [int(label) for label in joined]
