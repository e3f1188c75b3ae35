"""Places-LT, ImageNet-LT and iNaturalist 2018: published lists of images that are fetched apart from them."""

from __future__ import annotations

import json
import os
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from ltcore.contract.facts import DataFacts
from ltcore.contract.hook import hookimpl
from ltcore.contract.method import Method, Options
from ltcore.contract.splits import DataSplits
from ltcore.data.class_names import joined_by_name, read_class_names
from ltcore.data.counts import fitted_counts, published_counts
from ltcore.data.image_files import IMAGENET_MEAN, IMAGENET_STD, read_text
from ltcore.data.image_list import ListedSplit, listed_splits, read_list
from ltcore.errors import DataError
from ltcore.untrusted import parse_json


@dataclass(frozen=True)
class Published:
    """What a data set has when it is complete.

    Attributes:
        images: by split.
        num_classes: C.
        largest: training images of the most frequent class.
        smallest: training images of the least frequent class.
    """

    images: dict[str, int]
    num_classes: int
    largest: int
    smallest: int


class CollectionOptions(Options):
    """Options of a published collection of images."""

    root: str | None = None
    """Folder of the images; by default the environment variable LTCORE_DATA."""
    subset: bool = False
    """Accept other numbers of images and classes than the published ones."""
    check_files: bool = True
    """Look whether every image is there before anything is trained."""


class ListedOptions(CollectionOptions):
    """Options of a collection that lists name."""

    lists: str | None = None
    """Folder of the lists; by default that of the images."""


CollectionOptionsT = TypeVar("CollectionOptionsT", bound=CollectionOptions)


class Collection(Method[CollectionOptionsT]):
    """What the published collections share: where they are looked for, their totals, and their messages."""

    title: ClassVar[str]
    source: ClassVar[str]
    size: ClassVar[str]
    licence: ClassVar[str]
    layout: ClassVar[str]
    folder: ClassVar[str]
    #: Width and height in pixels of a typical file.
    stored: ClassVar[tuple[int, int]]
    approximate: ClassVar[str] = ""
    published: ClassVar[Published]

    def counts(self) -> tuple[int, ...]:
        """Training images of each class, in label order."""
        raise NotImplementedError

    def facts(self) -> DataFacts | None:
        """The published numbers; None where `subset` accepts others."""
        if self.options.subset:
            return None
        images = self.published.images
        return DataFacts(
            self.counts(),
            images["test"],
            IMAGENET_MEAN,
            IMAGENET_STD,
            image_size=224,
            val=images.get("val", 0),
            stored=self.stored,
            transform="imagenet",
            approximate=self.approximate,
        )

    def root(self) -> Path:
        """The folder of the images: the one named, or its subfolder `folder` where there is one.

        Raises:
            DataError: none is named, or it is not there.
        """
        named = self.options.root or os.environ.get("LTCORE_DATA")
        if not named:
            raise DataError(f"{self.title}: no folder is named. {self.advice()}")
        root = Path(named).expanduser()
        if not root.is_dir():
            raise DataError(f"{self.title}: {root.absolute()} is not a folder. {self.advice()}")
        return root / self.folder if (root / self.folder).is_dir() else root

    def advice(self) -> str:
        """Where the set comes from, how large it is, under which terms, and what its folder looks like."""
        return (
            f"It comes from {self.source} ({self.size}; {self.licence}) and is not downloaded for you. Its folder "
            f"holds {self.layout}; name it with --set data.options.root=DIR or the environment variable LTCORE_DATA"
        )

    def missing_advice(self) -> str | None:
        """What to do about missing images; None where they are not looked for."""
        off = "; data.options.check_files=false turns this check off"
        return self.advice() + off if self.options.check_files else None

    def check_totals(self, splits: DataSplits) -> DataSplits:
        """The splits, once their numbers are the published ones or `subset` accepts others.

        Raises:
            DataError: a number differs.
        """
        if self.options.subset:
            return splits
        counts = torch.bincount(splits.train.targets, minlength=len(splits.class_names))
        found = {"classes": (len(counts), self.published.num_classes)}
        for split, wanted in self.published.images.items():
            images = getattr(splits, split)
            found[f"{split} images"] = (0 if images is None else len(images), wanted)
        found["training images of the largest class"] = (int(counts.max()), self.published.largest)
        found["training images of the smallest class"] = (int(counts.min()), self.published.smallest)
        wrong = [f"{has} {what} instead of {wanted}" for what, (has, wanted) in found.items() if has != wanted]
        if wrong:
            raise DataError(
                f"{self.title} in {self.root().absolute()} has {', '.join(wrong)}. Its figures would compare with no "
                "published ones: complete it, or accept it with --set data.options.subset=true"
            )
        return splits


class _Listed(Collection[ListedOptions]):
    """A collection whose splits three lists name."""

    files: ClassVar[dict[str, str]]
    names_file: ClassVar[str]
    counts_file: ClassVar[str]

    def counts(self) -> tuple[int, ...]:
        """Those of the published training list."""
        return published_counts(self.counts_file)

    @property
    def provides(self) -> AbstractSet[str]:
        """Validation images: the set's own list of them."""
        return {"validation"}

    @hookimpl
    def build_data(self) -> DataSplits:
        """The published splits, from lists of either layout."""
        root = self.root()
        where = find_lists(self, root, self.files)
        if where is None:
            raise DataError(
                f"{self.title}: {', '.join(self.files.values())} not found in {_lists_folder(self, root).absolute()}. "
                f"{self.advice()}"
            )
        lists = {split: read_list(where / name) for split, name in self.files.items()}
        names = where / self.names_file
        class_names = read_class_names(names) if names.is_file() else None
        return self.check_totals(listed_splits(root, lists, class_names, self.missing_advice()))


def _lists_folder(collection: Collection[ListedOptions], root: Path) -> Path:
    named = collection.options.lists
    return Path(named).expanduser() if named else root


def find_lists(collection: Collection[ListedOptions], root: Path, files: dict[str, str]) -> Path | None:
    """The folder of a collection's lists; None where there is none of them.

    Raises:
        DataError: some are there and others not.
    """
    folder = _lists_folder(collection, root)
    absent = [name for name in files.values() if not (folder / name).is_file()]
    if absent and len(absent) < len(files):
        raise DataError(
            f"{collection.title}: {', '.join(absent)} not found in {folder.absolute()}, where other lists of it are. "
            f"{collection.advice()}"
        )
    return None if absent else folder


class PlacesLT(_Listed):
    """Scenes: 365 classes, 62,500 training images, 4980 to 5 a class; 7,300 validation and 36,500 test images."""

    summary = "scenes, 365 classes, 4980..5 training images; Places365 of MIT CSAIL, about 24 GB, non-commercial"
    title = "Places-LT"
    source = (
        "MIT CSAIL's Places365 page (small images, 256x256, training and validation), and its lists from the "
        "repository of Open Long-Tailed Recognition (Liu et al. 2019)"
    )
    size = "about 24 GB"
    licence = "for non-commercial research and education"
    layout = (
        "Places_LT_train.txt, Places_LT_val.txt, Places_LT_test.txt, and the images as train/CLASS/*.jpg and "
        "val/CLASS/*.jpg, or as data_256/LETTER/CLASS/*.jpg and val_256/*.jpg"
    )
    folder = "places"
    stored = (256, 256)
    counts_file = "places_lt"
    files: ClassVar[dict[str, str]] = {split: f"Places_LT_{split}.txt" for split in ("train", "val", "test")}
    names_file = "class_names.txt"
    published = Published({"train": 62_500, "val": 7_300, "test": 36_500}, 365, 4980, 5)


class ImageNetLT(_Listed):
    """Objects: 1000 classes, 115,846 training images, 1280 to 5 a class; 20,000 validation and 50,000 test images."""

    summary = "objects, 1000 classes, 1280..5 training images; ILSVRC 2012, about 145 GB, non-commercial research"
    title = "ImageNet-LT"
    source = (
        "image-net.org (ILSVRC 2012, training and validation images, after registration), and its lists from the "
        "repository of Open Long-Tailed Recognition (Liu et al. 2019)"
    )
    size = "about 145 GB"
    licence = "for non-commercial research, by registration"
    layout = (
        "ImageNet_LT_train.txt, ImageNet_LT_val.txt, ImageNet_LT_test.txt, and the images as train/WNID/*.JPEG and "
        "val/WNID/*.JPEG or val/*.JPEG"
    )
    folder = "imagenet"
    stored = (500, 375)
    counts_file = "imagenet_lt"
    files: ClassVar[dict[str, str]] = {split: f"ImageNet_LT_{split}.txt" for split in ("train", "val", "test")}
    names_file = "class_names.txt"
    published = Published({"train": 115_846, "val": 20_000, "test": 50_000}, 1000, 1280, 5)


class INaturalist2018(Collection[ListedOptions]):
    """Species: 8142 classes, 437,513 training images, 1000 to 2 a class; tested on the 24,426 validation images."""

    summary = "species, 8142 classes, 1000..2 training images; iNaturalist 2018, about 120 GB, non-commercial"
    title = "iNaturalist 2018"
    source = (
        "the iNaturalist 2018 competition's repository of visipedia (train_val2018.tar.gz, train2018.json, "
        "val2018.json), or lists of the same splits from repositories of long-tailed recognition"
    )
    size = "about 120 GB"
    licence = "for non-commercial use, and each photograph has a licence of its own"
    layout = (
        "train_val2018/GROUP/NUMBER/*.jpg, and either train2018.json and val2018.json, or iNaturalist18_train.txt and "
        "iNaturalist18_val.txt"
    )
    folder = "inaturalist2018"
    stored = (800, 600)
    approximate = "The class counts are a curve with the published number of classes, total and both ends"
    lists: ClassVar[dict[str, str]] = {"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"}
    annotations: ClassVar[dict[str, str]] = {"train": "train2018.json", "test": "val2018.json"}
    published = Published({"train": 437_513, "test": 24_426}, 8142, 1000, 2)

    def counts(self) -> tuple[int, ...]:
        """A curve fitted to the published totals, from the largest class to the smallest."""
        published = self.published
        return fitted_counts(published.num_classes, published.images["train"], published.largest, published.smallest)

    @hookimpl
    def build_data(self) -> DataSplits:
        """Training and validation split, the latter as test split; from the lists, else the annotations."""
        root = self.root()
        if (where := find_lists(self, root, self.lists)) is not None:
            lists, names = {split: read_list(where / name) for split, name in self.lists.items()}, None
        elif (where := find_lists(self, root, self.annotations)) is not None:
            lists, names = read_annotations({split: where / name for split, name in self.annotations.items()})
        else:
            raise DataError(
                f"{self.title}: neither {' and '.join(self.annotations.values())} nor "
                f"{' and '.join(self.lists.values())} found in {_lists_folder(self, root).absolute()}. {self.advice()}"
            )
        return self.check_totals(listed_splits(root, lists, names, self.missing_advice()))


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
        files, categories, titles = _read_json(path)
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


def _read_json(path: Path) -> tuple[list[str], list[int], dict[int, str]]:
    """File names, their categories, and the names of categories."""
    try:
        content: Any = parse_json(read_text(path))
        named = {image["id"]: str(image["file_name"]) for image in content["images"]}
        annotated = [(each["image_id"], int(each["category_id"])) for each in content["annotations"]]
        titles = {int(each["id"]): str(each["name"]) for each in content.get("categories", ())}
        unknown = [image for image, _ in annotated if image not in named]
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: this is no JSON ({error.msg}); fetch the file again") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} lacks images (id, file_name) or annotations (image_id, category_id), or has other kinds of values "
            f"({type(error).__name__}: {error}); fetch the competition's file"
        ) from error
    if unknown:
        raise DataError(f"{path}: an annotation is of image {unknown[0]}, which is not among its images")
    of_image: dict[Any, int] = {}
    for image, category in annotated:
        if image in of_image:
            raise DataError(f"{path}: {named[image]} has two annotations; an image has one class")
        of_image[image] = category
    if bare := [image for image in named if image not in of_image]:
        raise DataError(f"{path}: {len(bare)} images have no annotation, first {named[bare[0]]}")
    if not named:
        raise DataError(f"{path} has no images")
    return list(named.values()), [of_image[image] for image in named], titles
