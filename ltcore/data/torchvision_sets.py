"""Fashion-MNIST-LT, CIFAR-10-LT and CIFAR-100-LT, from the files that torchvision knows, too."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ltcore.contract.facts import DataFacts
from ltcore.contract.hook import hookimpl
from ltcore.contract.imbalance import Imbalance
from ltcore.contract.method import Method, Options
from ltcore.contract.splits import ArraySplit, DataSplits
from ltcore.data.cifar_files import read_file, read_images
from ltcore.data.idx import find_idx, read_idx
from ltcore.errors import DataError

FASHION_STEMS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_TAIL = Imbalance(kind="exponential", factor=100)
_FASHION_MEAN, _FASHION_STD = (0.2860,), (0.3530,)
# Those of CIFAR-10 for CIFAR-100, too: what the published tables were made with.
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class FolderOptions(Options):
    """Options of a data set in a folder."""

    root: str | None = None
    """Folder of the data sets; by default the environment variable LTCORE_DATA."""
    download: bool = False
    """Fetch the files through torchvision where they are not there."""


class _FolderSet(Method[FolderOptions]):
    """What the three sets share: where they are looked for, and the message where they are not."""

    title: ClassVar[str]
    source: ClassVar[str]
    size: ClassVar[str]
    licence: ClassVar[str]

    def _root(self) -> Path:
        named = self.options.root or os.environ.get("LTCORE_DATA")
        if not named:
            raise DataError(f"{self.title}: no folder is named. {self._advice()}")
        return Path(named).expanduser()

    def _advice(self) -> str:
        return (
            f"It comes from {self.source} ({self.size}; {self.licence}). Name its folder with --set "
            "data.options.root=DIR or the environment variable LTCORE_DATA, or fetch it with "
            "--set data.options.download=true"
        )

    def _missing(self, wanted: str, where: Path) -> DataError:
        return DataError(f"{self.title}: {wanted} not found in {where.absolute()}. {self._advice()}")

    def _download(self, torchvision_class: str, root: Path) -> None:
        from torchvision import datasets

        try:
            getattr(datasets, torchvision_class)(str(root), download=True)
        except (OSError, RuntimeError) as error:  # a URLError is an OSError
            raise DataError(
                f"{self.title}: the download to {root.absolute()} failed ({error}). Fetch it by hand from {self.source}"
            ) from error


class FashionMNISTLT(_FolderSet):
    """28 x 28 grey images of ten kinds of clothing, 6000 to 60 training images per class by default."""

    summary = "clothing, 10 classes, 28x28 grey, 6000..60 training images; Zalando Research, 30 MB, MIT licence"
    title = "Fashion-MNIST"
    source = (
        "Zalando Research's fashion-mnist repository, or Debian's package dataset-fashion-mnist, which puts it in "
        "/usr/share/datasets/fashion-mnist"
    )
    size = "30 MB"
    licence = "MIT licence"

    @hookimpl
    def build_data(self) -> DataSplits:
        """The whole set; looked for in the folder itself and in torchvision's ``FashionMNIST/raw`` below it."""
        root = self._root()
        stems = [stem for pair in FASHION_STEMS.values() for stem in pair]
        folders = (root, root / "FashionMNIST" / "raw")
        if self.options.download and not any(all(find_idx(f, s) for s in stems) for f in folders):
            self._download("FashionMNIST", root)
        for folder in folders:
            if not any(find_idx(folder, stem) for stem in stems):
                continue
            if absent := [stem for stem in stems if not find_idx(folder, stem)]:
                raise self._missing(f"{', '.join(absent)} (.gz or plain)", folder)
            return DataSplits(
                train=self._split(folder, "train"),
                test=self._split(folder, "test"),
                class_names=FASHION_CLASSES,
                mean=_FASHION_MEAN,
                std=_FASHION_STD,
                crop_padding=2,
                flip=True,
                imbalance=_TAIL,
            )
        raise self._missing(f"{stems[0]}.gz and its three companions, in the folder or its FashionMNIST/raw,", root)

    def facts(self) -> DataFacts:
        """The published numbers: as many of each class."""
        return DataFacts(
            (6_000,) * 10,
            10_000,
            _FASHION_MEAN,
            _FASHION_STD,
            image_size=28,
            crop_padding=2,
            flip=True,
            imbalance=_TAIL,
        )

    def _split(self, folder: Path, split: str) -> ArraySplit:
        paths = [find_idx(folder, stem) for stem in FASHION_STEMS[split]]
        assert paths[0] is not None and paths[1] is not None  # build_data has looked
        images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(images) != len(labels):
            raise DataError(f"{paths[0]} has {len(images)} images, but {paths[1].name} has {len(labels)} labels")
        return ArraySplit(torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)))


class _CIFAR(_FolderSet):
    """What CIFAR-10 and CIFAR-100 share."""

    folder: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    labels: ClassVar[str]
    torchvision_class: ClassVar[str]
    num_classes: ClassVar[int]

    @hookimpl
    def build_data(self) -> DataSplits:
        """The whole set; the files' checksums are compared before they are read."""
        root = self._root()
        if root.name == self.folder:  # the folder itself was named
            root = root.parent
        absent = self._absent(root)
        if absent and self.options.download:
            self._download(self.torchvision_class, root)
            absent = self._absent(root)
        if absent:
            raise self._missing(f"{self.folder}/{absent[0]}", root)
        train, test, names = self._read(root / self.folder)
        return DataSplits(
            train=train,
            test=test,
            class_names=names,
            mean=_CIFAR_MEAN,
            std=_CIFAR_STD,
            crop_padding=4,
            flip=True,
            imbalance=_TAIL,
        )

    def facts(self) -> DataFacts:
        """The published numbers: as many of each class."""
        return DataFacts(
            (50_000 // self.num_classes,) * self.num_classes,
            10_000,
            _CIFAR_MEAN,
            _CIFAR_STD,
            image_size=32,
            crop_padding=4,
            flip=True,
            imbalance=_TAIL,
        )

    def _absent(self, root: Path) -> list[str]:
        return [name for name in self.files if not (root / self.folder / name).is_file()]

    def _read(self, folder: Path) -> tuple[ArraySplit, ArraySplit, tuple[str, ...]]:
        *train, test, meta = self.files
        try:
            found = read_images(folder, train, self.labels), read_images(folder, [test], self.labels)
            names = read_file(folder / meta)[f"{self.labels.removesuffix('s')}_names"]
        except (OSError, EOFError, AttributeError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise DataError(
                f"{self.title}: the files in {folder.absolute()} are not the published ones, or damaged "
                f"({error}). Remove them and fetch them again from {self.source} ({self.size})"
            ) from error
        # The test images are kept, so they are laid out as the loader wants them; of the others most will be cut away.
        splits = [(found[0][0], found[0][1]), (_channels_last(found[1][0]), found[1][1])]
        with warnings.catch_warnings(action="ignore"):  # that nothing may write into what was read
            first, second = (
                ArraySplit(torch.from_numpy(pixels), torch.from_numpy(labels)) for pixels, labels in splits
            )
        return first, second, tuple(name.decode() if isinstance(name, bytes) else name for name in names)


def _channels_last(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, C, H, W], [N, H, W, C] in memory."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


class CIFAR10LT(_CIFAR):
    """32 x 32 colour images of ten classes, 5000 to 50 training images per class by default."""

    summary = (
        "objects, 10 classes, 32x32 colour, 5000..50 training images; University of Toronto, 163 MB, "
        "no licence stated, for research"
    )
    title = "CIFAR-10"
    source = "the CIFAR page of the University of Toronto"
    size = "163 MB"
    licence = "no licence stated, for research"
    folder = "cifar-10-batches-py"
    files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    labels = "labels"
    torchvision_class = "CIFAR10"
    num_classes = 10


class CIFAR100LT(_CIFAR):
    """32 x 32 colour images of a hundred classes, 500 to 5 training images per class by default."""

    summary = (
        "objects, 100 classes, 32x32 colour, 500..5 training images; University of Toronto, 161 MB, "
        "no licence stated, for research"
    )
    title = "CIFAR-100"
    source = "the CIFAR page of the University of Toronto"
    size = "161 MB"
    licence = "no licence stated, for research"
    folder = "cifar-100-python"
    files = ("train", "test", "meta")
    labels = "fine_labels"
    torchvision_class = "CIFAR100"
    num_classes = 100
