"""Places-LT and ImageNet-LT, published lists of images that are fetched apart from them, and what such sets share."""

from __future__ import annotations

import os
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import torch

from ltcore.contract.facts import DataFacts
from ltcore.contract.hook import hookimpl
from ltcore.contract.method import Method, Options
from ltcore.contract.splits import DataSplits
from ltcore.data.class_names import read_class_names
from ltcore.data.counts import published_counts
from ltcore.data.image_files import IMAGENET_MEAN, IMAGENET_STD
from ltcore.data.image_list import listed_splits, read_list
from ltcore.errors import DataError


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
                f"{self.title}: {', '.join(self.files.values())} not found in {lists_folder(self, root).absolute()}. "
                f"{self.advice()}"
            )
        lists = {split: read_list(where / name) for split, name in self.files.items()}
        names = where / self.names_file
        class_names = read_class_names(names) if names.is_file() else None
        return self.check_totals(listed_splits(root, lists, class_names, self.missing_advice()))


def lists_folder(collection: Collection[ListedOptions], root: Path) -> Path:
    """Where a collection's lists are: the folder that is named, else that of the images."""
    named = collection.options.lists
    return Path(named).expanduser() if named else root


def find_lists(collection: Collection[ListedOptions], root: Path, files: dict[str, str]) -> Path | None:
    """The folder of a collection's lists; None where there is none of them.

    Raises:
        DataError: some are there and others not.
    """
    folder = lists_folder(collection, root)
    absent = [name for name in files.values() if not (folder / name).is_file()]
    if absent and len(absent) < len(files):
        raise DataError(
            f"{collection.title}: {', '.join(absent)} not found in {folder.absolute()}, where other lists of it are. "
            f"{collection.advice()}"
        )
    return None if absent else folder


class PlacesLT(_Listed):
    """Scenes: 365 classes, 62,500 training images, 4980 to 5 per class; 7,300 validation and 36,500 test images."""

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
    """Objects: 1000 classes, 115,846 training images, 1280 to 5 per class; 20,000 validation and 50,000 test images."""

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
