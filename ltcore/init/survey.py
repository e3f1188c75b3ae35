"""What a person's folder of images holds: classes, counts, splits, sizes. Nothing in the folder is changed."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltcore.contract.splits import DataSplits, StreamedSplit
from ltcore.data.duplicates import find_duplicates, uncompared
from ltcore.data.image_files import IMAGE_SUFFIXES, spell_out, subfolders, unreadable
from ltcore.data.image_folder import ImageFolder, ImageFolderOptions
from ltcore.data.image_list import ImageList, ImageListOptions
from ltcore.data.image_table import ImageTable, ImageTableOptions, file_column
from ltcore.data.pixels import fitting_window
from ltcore.data.split_folders import NAMES, SPLITS, Reading, find_layout, split_of
from ltcore.data.tables import read_table
from ltcore.errors import DataError, listed

#: How many images are opened, for their headers only.
SAMPLE = 300
#: How many of them are decoded, to see how long it takes.
DECODED = 12
#: What tables are called that lie beside the images of a split: a column a class, or COCO's annotations.
_TABLES_IN_SPLITS = ("_classes.csv", "_annotations.coco.json")
#: Classes with fewer images than this need all of them for training and testing.
ENOUGH_TO_VALIDATE = 10


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        use: the reader, ``image_folder``, ``image_list`` or ``image_table``.
        options: the reader's options.
        split: how the splits came about: ``fraction``, ``folders`` or ``lists``.
        class_names: C names in label order.
        counts: C training images per class.
        images: number of images by split; 0 for a split that is not there.
        untested: names of classes without a test image.
        side: median over the sample of the shorter side, in pixels.
        sampled: images that were opened.
        grey: how many of them have no colours.
        broken: paths of those that are no images.
        notes: what the reader says about the files, and what was found among them.
        window: the range of images of more than eight bits, where they need one stated.
        decoding: seconds in which one core decodes an image and resizes it.
    """

    use: str
    options: dict[str, Any]
    split: str
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    images: dict[str, int]
    untested: tuple[str, ...]
    side: int
    sampled: int
    grey: int
    broken: tuple[str, ...]
    notes: tuple[str, ...]
    window: tuple[float, float] | None = None
    decoding: float = 0.0

    @property
    def imbalance(self) -> float:
        """Training images of the largest class over those of the smallest."""
        return max(self.counts) / min(self.counts)

    def class_of(self, count: int) -> str:
        """The first class with that many training images."""
        return self.class_names[self.counts.index(count)]


def survey(folder: Path, reading: Reading = "auto") -> Survey:
    """Look at a folder with one folder per class, with the folders train, val and test, or with split lists.

    Args:
        folder: the images, or the lists that name them.
        reading: whether its folders are classes (``fraction``) or splits (``folders``); ``auto``: what they look like.

    Raises:
        DataError: it is missing or unreadable, holds no images in two classes or more, or its lists do not suit.
    """
    options: dict[str, Any]
    root = folder.expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"{root} is {'no folder' if root.exists() else 'not there'}; name the folder of your images")
    if reading == "auto" and (lists := find_lists(root)):
        options = {"root": str(root), **lists}
        splits = ImageList(ImageListOptions(**options)).build_data()
        return _count("image_list", options, "lists", splits)
    if reading == "auto" and (table := find_tables_in_splits(root) or find_table(root)):
        reader = ImageTable(ImageTableOptions(**table))
        how = "fraction" if reader.by_fraction else "lists"
        if how == "fraction":
            counts = _totals(reader.build_data())
            table |= {"test_fraction": 0.2, **_validation(counts)}
        return _count("image_table", table, how, ImageTable(ImageTableOptions(**table)).build_data())
    options = {"root": str(root)}
    if reading != "auto":
        options["split"] = reading
    if find_layout(root, reading, {}).splits:
        return _count("image_folder", options, "folders", _read_folder(options))
    options |= {"test_fraction": 0.2, **_validation(_totals(_read_folder(options)))}
    return _count("image_folder", options, "fraction", _read_folder(options))


def _validation(counts: Sequence[int]) -> dict[str, Any]:
    """What is held out for validation: nothing of a class that needs all its images for training and testing."""
    if max(counts) < ENOUGH_TO_VALIDATE:
        return {"val_fraction": 0.0}
    return {"val_fraction": 0.1} | ({"val_min": ENOUGH_TO_VALIDATE} if min(counts) < ENOUGH_TO_VALIDATE else {})


def find_tables_in_splits(root: Path) -> dict[str, Any]:
    """Tables beside the images of the folders train, valid and test, as options of `image_table`; else empty.

    They are called as Roboflow calls them.
    """
    found: dict[str, str] = {}
    for name in subfolders(root):
        tables = [table for table in _TABLES_IN_SPLITS if (root / name / table).is_file()]
        if (split := split_of(name)) and tables:
            found.setdefault("table" if split == "train" else split, f"{name}/{tables[0]}")
    return {"root": str(root), **found} if "table" in found else {}


def find_table(root: Path) -> dict[str, Any]:
    """A table of labels that lies in a folder, as options of `image_table`; empty where folders say the classes.

    Raises:
        DataError: there are several, or the table's files are not found.
    """
    tables = sorted(path.name for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
    folders = subfolders(root)
    classes = [name for name in folders if not split_of(name)]
    inner = any(subfolders(root / name) for name in folders)
    if not tables or len(classes) > 1 or inner:
        return {}
    options: dict[str, Any] = {"root": str(root)}
    for split, option in (("train", "table"), ("val", "val"), ("test", "test")):
        if names := [name for name in tables if _is_of(name, split)]:
            options[option] = names[0]
    if "table" not in options:
        if len(tables) > 1:
            raise DataError(f"{root} has several tables, {listed(tables)}; name them in a recipe with use: image_table")
        options = {"root": str(root), "table": tables[0]}
    table = read_table(root / options["table"])
    file = table.rows[0][file_column(table, None)]
    suffixes = ("", *(each for ending in sorted(IMAGE_SUFFIXES) for each in (ending, ending.upper())))
    for folder in ("", *(f"{name}/" for name in folders)):
        for suffix in suffixes:
            if (root / f"{folder}{file}{suffix}").is_file():
                if folder:
                    options |= {option: str(root / name) for option, name in options.items()}
                    options["root"] = str(root / folder.rstrip("/"))
                return options | ({"suffix": suffix} if suffix else {})
    raise DataError(
        f"{root / options['table']}:{table.lines[0]}: '{file}' is neither in {root} nor in a folder of it; put the "
        "table where its paths begin"
    )


def _is_of(name: str, split: str) -> bool:
    """Whether a file is called like a list of a split's images."""
    return bool(re.search(rf"(?:^|[^a-z])(?:{'|'.join(NAMES[split])})(?:[^a-z]|$)", name.lower()))


def find_lists(root: Path) -> dict[str, str]:
    """Split lists that lie in a folder, as options of `image_list`; empty where there is no training list.

    They are text files with ``train``, ``val`` or ``test`` in their names.

    Raises:
        DataError: two lists of one split, or nothing to test on.
    """
    try:
        texts = sorted(path.name for path in root.iterdir() if path.suffix == ".txt" and not path.name.startswith("."))
    except OSError as error:
        raise unreadable(root, error) from error
    found: dict[str, str] = {}
    for split in SPLITS:
        names = [name for name in texts if _is_of(name, split)]
        if len(names) > 1:
            raise DataError(f"{root} has several lists of {split} images, {listed(names)}; keep one there")
        if names:
            found[split] = names[0]
    if "train" not in found:
        return {}
    if "test" not in found:
        if "val" not in found:
            raise DataError(
                f"{root} has the list '{found['train']}' and none to test on; add a list with 'test' in its name, of "
                "lines 'relative/path label'"
            )
        found["test"] = found.pop("val")
    if names := [name for name in ("class_names.txt", "classes.txt") if name in texts]:
        found["class_names"] = names[0]
    return found


def _read_folder(options: dict[str, Any]) -> DataSplits:
    return ImageFolder(ImageFolderOptions(**options)).build_data()


def _targets(split: Any) -> torch.Tensor:
    return torch.zeros(0, dtype=torch.int64) if split is None else split.targets


def _totals(splits: DataSplits) -> list[int]:
    """Images of each class, whatever the split."""
    targets = torch.cat([_targets(split) for split in (splits.train, splits.val, splits.test)])
    return torch.bincount(targets, minlength=len(splits.class_names)).tolist()


def _count(use: str, options: dict[str, Any], split: str, splits: DataSplits) -> Survey:
    classes = len(splits.class_names)
    if classes < 2:
        raise DataError(f"{options['root']} has one class; a classifier needs two")
    tested = torch.bincount(splits.test.targets, minlength=classes).tolist()
    sides, grey, broken, decoding = _open_some(splits.train)  # type: ignore[arg-type]
    return Survey(
        use=use,
        options=options,
        split=split,
        class_names=splits.class_names,
        counts=tuple(torch.bincount(splits.train.targets, minlength=classes).tolist()),
        images={name: len(_targets(getattr(splits, name))) for name in SPLITS},
        untested=tuple(name for name, count in zip(splits.class_names, tested, strict=True) if not count),
        side=round(statistics.median(sides)),
        sampled=len(sides) + len(broken),
        grey=grey,
        broken=tuple(broken),
        notes=(*splits.notes, *_duplicates(splits)),
        window=fitting_window(splits.train),  # type: ignore[arg-type]
        decoding=decoding,
    )


def _duplicates(splits: DataSplits) -> tuple[str, ...]:
    found = {"train": splits.train, "val": splits.val, "test": splits.test}
    if too_many := uncompared(found):
        return (too_many,)
    duplicates = find_duplicates(found, splits.class_names)
    return duplicates.notes if duplicates else ()


def _open_some(split: StreamedSplit) -> tuple[list[int], int, list[str], float]:
    """Shorter sides, how many images have no colours, the paths of those that are no images, and seconds to decode.

    Most are opened for their headers only.
    """
    sides: list[int] = []
    seconds: list[float] = []
    grey, broken = 0, []
    number = min(SAMPLE, len(split))
    for index in sorted({len(split) * i // number for i in range(number)}):
        try:
            with split.open(index) as image:
                sides.append(min(image.size))
                grey += image.mode in ("1", "L", "LA", "I", "I;16", "F")
                if len(seconds) < DECODED:
                    start = time.perf_counter()
                    image.convert("RGB").resize((224, 224))
                    seconds.append(time.perf_counter() - start)
        except OSError:
            broken.append(split.name(index))
    if not sides:
        raise DataError(
            f"none of the {number} images that were opened can be read, the first {broken[0]}; are they images?"
        )
    return sides, grey, broken, statistics.median(seconds or [0.0])


def rarest(found: Survey, number: int = 3) -> str:
    """``5 in 'zebra', 6 in 'yak'``: the rarest classes."""
    order: Sequence[int] = sorted(range(len(found.counts)), key=lambda label: (found.counts[label], label))
    return spell_out({found.class_names[label]: found.counts[label] for label in order[:number]})
