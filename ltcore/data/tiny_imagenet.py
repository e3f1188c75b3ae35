"""Tiny-ImageNet with a long tail, as CDT's paper trains on it (Ye et al. 2020, appendix A.5)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ltcore.contract.facts import DataFacts
from ltcore.contract.hook import hookimpl
from ltcore.contract.imbalance import Imbalance
from ltcore.contract.splits import DataSplits, FileSplit
from ltcore.data.image_files import Found, check_files, file_split, find_images, read_text, subfolders
from ltcore.data.image_list import imagenet_like
from ltcore.data.large_sets import Collection, CollectionOptions, Published
from ltcore.errors import DataError

_TAIL = Imbalance(kind="exponential", factor=100)


class TinyImageNetLT(Collection[CollectionOptions]):
    """64 x 64 images of 200 classes, 500 to 5 training images per class by default; tested on the validation images.

    The labels of the published test images are not published.
    """

    summary = "objects, 200 classes, 64x64 colour, 500..5 training images; Stanford CS231n, 237 MB, for research"
    title = "Tiny-ImageNet"
    source = "Stanford's course CS231n (tiny-imagenet-200.zip)"
    size = "237 MB"
    licence = "none stated; images of ImageNet, for research"
    layout = (
        "train/WNID/images/*.JPEG, and val/images/*.JPEG with val/val_annotations.txt, or else train/CLASS/*.JPEG and "
        "val/CLASS/*.JPEG"
    )
    folder = "tiny-imagenet-200"
    stored = (64, 64)
    # The whole of it; core then cuts the tail.
    published = Published({"train": 100_000, "test": 10_000}, 200, 500, 500)

    @hookimpl
    def build_data(self) -> DataSplits:
        """The whole training split, and the validation split as test split; labels follow the sorted folder names."""
        root = self.root()
        found = {}
        for split in ("train", "val"):
            if not (root / split).is_dir():
                raise DataError(f"{self.title}: no folder {split} in {root.absolute()}. {self.advice()}")
        for name in subfolders(root / "train"):
            found[name] = find_images(root / "train" / name)
            if not found[name].files:
                raise DataError(f"{self.title}: no images in {(root / 'train' / name).absolute()}. {self.advice()}")
        if not found:
            raise DataError(f"{self.title}: no class folders in {(root / 'train').absolute()}. {self.advice()}")
        classes = list(found)
        splits = {"train": _from_folders(root, "train", classes, found)}
        annotations = root / "val" / "val_annotations.txt"
        splits["test"] = (
            self._annotated(root, annotations, classes) if annotations.is_file() else self._val(root, classes)
        )
        return self.check_totals(
            replace(
                imagenet_like(splits),
                class_names=_readable(root, classes),
                transform="cifar",
                image_size=64,
                crop_padding=8,
                flip=True,
                imbalance=_TAIL,
            )
        )

    def counts(self) -> tuple[int, ...]:
        """As many of each class; core cuts the tail."""
        return (self.published.largest,) * self.published.num_classes

    def facts(self) -> DataFacts | None:
        """See `Collection.facts`."""
        facts = super().facts()
        if facts is None:
            return None
        return replace(facts, transform="cifar", image_size=64, crop_padding=8, flip=True, imbalance=_TAIL)

    def _val(self, root: Path, classes: list[str]) -> FileSplit:
        """``val/CLASS/``."""
        found = {}
        for name in subfolders(root / "val"):
            if name not in classes:
                raise DataError(
                    f"{self.title}: {(root / 'val' / name).absolute()} is of no class of "
                    f"{(root / 'train').absolute()}. {self.advice()}"
                )
            found[name] = find_images(root / "val" / name)
        if not any(images.files for images in found.values()):
            raise DataError(
                f"{self.title}: neither val_annotations.txt nor class folders with images in "
                f"{(root / 'val').absolute()}. {self.advice()}"
            )
        return _from_folders(root, "val", classes, found)

    def _annotated(self, root: Path, path: Path, classes: list[str]) -> FileSplit:
        """``val/images/``, with the class in the second column of ``val_annotations.txt``."""
        labels_of = {name: label for label, name in enumerate(classes)}
        files, labels = [], []
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            columns = line.split("\t")
            if len(columns) < 2 or columns[1] not in labels_of:
                what = f"class '{columns[1]}' has no folder in train" if len(columns) > 1 else "no class is named"
                raise DataError(
                    f"{path}:{number}: {what}; a line is an image, a tab, the class's folder, and perhaps a box"
                )
            files.append(f"val/images/{columns[0]}")
            labels.append(labels_of[columns[1]])
        if not files:
            raise DataError(f"{path}: the file is empty; fetch it again")
        if (advice := self.missing_advice()) is not None:
            check_files(root, files, str(path), advice)
        return file_split(root, files, labels)


def _from_folders(root: Path, split: str, classes: list[str], found: dict[str, Found]) -> FileSplit:
    members = [
        (f"{split}/{name}/{file}", label)
        for label, name in enumerate(classes)
        for file in (found[name].files if name in found else ())
    ]
    return file_split(root, [file for file, _ in members], [label for _, label in members])


def _readable(root: Path, classes: list[str]) -> tuple[str, ...]:
    """Each class's first word in ``words.txt`` (WordNet id, tab, words); folder names where two classes share it."""
    words = root / "words.txt"
    if words.is_file():
        pairs = (line.split("\t", 1) for line in read_text(words).splitlines() if "\t" in line)
        title = {wnid: text.split(",")[0].strip() for wnid, text in pairs}
        names = tuple(title.get(name, name) for name in classes)
        if len(set(names)) == len(names):
            return names
    return tuple(classes)
