"""What the readers of image collections share: finding files, checking that they are there, naming classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ltcore.contract.splits import FileSplit
from ltcore.errors import DataError

#: Endings of files that are taken for images; Pillow reads them all.
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".jfif", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

#: ImageNet's, which the large long-tailed sets are normalised with, and the weights that are fine-tuned on them were.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: How many files a message names.
NAMED = 3


@dataclass(frozen=True)
class Found:
    """Images below a folder.

    Attributes:
        files: their paths relative to it, with ``/``, sorted.
        ignored: how many other files there are, hidden ones among them.
    """

    files: tuple[str, ...]
    ignored: int


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise unreadable(folder, error) from error


def find_images(folder: Path) -> Found:
    """Every image below a folder, at any depth; symbolic links are followed, each folder once.

    Raises:
        DataError: the folder or one below it cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or folder), error) from error

    files: list[str] = []
    ignored, seen = 0, set()
    for base, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        seen.add(os.path.realpath(base))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(base, name)) not in seen  # a link in a circle
        )
        inside = os.path.relpath(base, folder).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        images = [
            name for name in names if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
        files += [prefix + name for name in images]
        ignored += len(names) - len(images)
    return Found(tuple(sorted(files)), ignored)


def unreadable(path: Path, error: OSError) -> DataError:
    """The message for a file or folder that the system refuses."""
    return DataError(f"{path.absolute()} cannot be read ({error.strerror or error}); check that it is there and yours")


def missing_files(root: Path, files: Sequence[str]) -> list[int]:
    """Where in `files` those stand that are not below `root`.

    Each directory is listed once: iNaturalist's 437,513 files take 8,142 look-ups, not one each.
    """
    listings: dict[str, frozenset[str]] = {}
    absent = []
    for position, file in enumerate(files):
        folder, _, name = file.rpartition("/")
        if folder not in listings:
            try:
                listings[folder] = frozenset(os.listdir(os.path.join(root, folder) if folder else root))
            except OSError:
                listings[folder] = frozenset()
        if name not in listings[folder]:
            absent.append(position)
    return absent


def check_files(root: Path, files: Sequence[str], source: str, advice: str) -> None:
    """Refuse files that are not there, with how many and the first ones.

    Args:
        root: what `files` are relative to.
        files: relative paths.
        source: who lists them, such as the list's path.
        advice: what to do.

    Raises:
        DataError: at least one is missing.
    """
    if absent := missing_files(root, files):
        first = ", ".join(files[position] for position in absent[:NAMED]) + (", ..." if len(absent) > NAMED else "")
        raise DataError(
            f"{source}: {len(absent)} of {len(files)} images are not in {root.absolute()}: {first}. {advice}"
        )


def file_split(root: Path, files: Sequence[str], labels: Sequence[int]) -> FileSplit:
    """A split of N files, in their order.

    Raises:
        DataError: a file's name is not UTF-8.
    """
    try:
        encoded = np.array([file.encode() for file in files], dtype=np.bytes_)
    except UnicodeEncodeError as error:
        name = os.fsencode(str(error.object)).decode(errors="replace")
        raise DataError(f"{root / name}: the file's name is not UTF-8; rename it") from error
    return FileSplit(root, encoded, torch.tensor(labels, dtype=torch.int64))


def read_class_names(path: Path) -> list[str]:
    """Class names of a text file: one a line in label order, or ``name label`` on every line, in any order.

    Raises:
        DataError: it cannot be read, has an empty line between others, or names a class twice.
    """
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
    pairs = [line.rsplit(None, 1) for line in lines]
    labels = [int(pair[1]) if len(pair) == 2 and pair[1].isdecimal() else -1 for pair in pairs]
    if sorted(labels) == list(range(len(lines))):
        lines = [pairs[labels.index(label)][0] for label in range(len(lines))]
    seen: dict[str, int] = {}
    for number, name in enumerate(lines, start=1):
        if not name:
            raise DataError(f"{path}:{number}: the line is empty; write one class name a line, in label order")
        if name in seen:
            raise DataError(f"{path}:{number}: '{name}' is named twice (first as number {seen[name]}); rename one")
        seen[name] = number
    return lines


def read_text(path: Path) -> str:
    """A UTF-8 text file's content.

    Raises:
        DataError: it is missing, unreadable or not text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if (place := text.find("\0")) >= 0:
            line = text.count("\n", 0, place) + 1
            raise DataError(f"{path.absolute()}:{line}: it holds the character NUL, so it is no text; save it anew")
        return text
    except UnicodeDecodeError as error:
        raise DataError(f"{path.absolute()} is not a UTF-8 text file ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise unreadable(path, error) from error


def names_from_folders(
    files: Iterable[str], labels: Iterable[int], num_classes: int, folder_of: Callable[[str], str]
) -> tuple[str, ...]:
    """Class names from the folders that the classes' files are in, or else the labels as text.

    A class is named by its folder where every class has one folder of its own; by as few of the path's last parts as
    tell all classes apart.

    Args:
        files: N paths.
        labels: N labels from 0 to `num_classes` less one.
        num_classes: C.
        folder_of: the folder of a path.
    """
    folders: dict[int, set[str]] = {label: set() for label in range(num_classes)}
    for file, label in zip(files, labels, strict=True):
        folders[label].add(folder_of(file))
    numbers = tuple(str(label) for label in range(num_classes))
    if any(len(found) != 1 for found in folders.values()):
        return numbers
    parts = [found.copy().pop().split("/") for found in folders.values()]
    for depth in range(1, max(map(len, parts)) + 1):
        names = tuple("/".join(part[-depth:]) for part in parts)
        if all(names) and len(set(names)) == num_classes:
            return names
    return numbers


def spell_out(counts: Mapping[str, int]) -> str:
    """``12 in 'cat', 3 in 'dog'``; the first few."""
    shown = [f"{count} in '{name}'" for name, count in list(counts.items())[:NAMED]]
    return ", ".join(shown) + (", ..." if len(counts) > NAMED else "")
