"""Names of classes: read from files, taken from folders, and what joins the numberings of two splits."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltcore.data.image_files import read_text
from ltcore.errors import DataError, listed, nearest

_MOST_DIGITS = 9  # of a label


def joined_by_name(
    source: str, labels: NDArray[np.int64], own: Sequence[str], reference: str, names: Sequence[str]
) -> NDArray[np.int64]:
    """Labels of a split that numbers its classes in its own way, in the numbering of the training split.

    Args:
        source: the split, for messages.
        labels: [N] int64, places in `own`.
        own: the split's class names.
        reference: the training split, for messages.
        names: the training split's class names.

    Returns:
        [N] int64, places in `names`.

    Raises:
        DataError: an image is of a class that `names` lacks, or of a name that stands for two classes.
    """
    if list(own) == list(names):
        return labels
    used = np.unique(labels).tolist()
    for where, known in ((source, own), (reference, names)):
        twice = [name for name, count in Counter(known).items() if count > 1 and name in {own[i] for i in used}]
        if twice:
            raise DataError(
                f"{where}: the class name '{twice[0]}' stands there twice, so that labels cannot be joined by name; "
                "rename one"
            )
    place = {name: label for label, name in enumerate(names)}
    unknown = {own[label]: int((labels == label).sum()) for label in used if own[label] not in place}
    if unknown:
        first = next(iter(unknown))
        raise DataError(
            f"{source}: {sum(unknown.values())} images are of {len(unknown)} classes that {reference} does not have, "
            f"first '{first}'{nearest(first, names)}; rename them there, or take these images out (it has "
            f"{listed(list(names)[:5])}{', ...' if len(names) > 5 else ''})"
        )
    to = np.array([place.get(name, -1) for name in own], dtype=np.int64)
    joined: NDArray[np.int64] = to[labels]
    return joined


def read_class_names(path: Path) -> list[str]:
    """Class names of a text file, in label order.

    One name per line, in label order. Or a name and its number on every line, in either order and with any order of the
    lines. They are separated by white space, or as CSV (comma, semicolon or tab; a header may come first, and more
    columns). Numbers run from 0, or from 1, without gaps.

    Raises:
        DataError: it cannot be read, has an empty line between others, or names a class twice. Or it has two columns of
            numbers that could both be the labels.
    """
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
    if not lines:
        raise DataError(f"{path} is empty; write one class name a line, in label order")
    if "" in lines:
        raise DataError(f"{path}:{lines.index('') + 1}: the line is empty; write one class name a line, in label order")
    names = _by_number(path, lines) or lines
    seen: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if name in seen:
            where = f"{path}:{number}" if names is lines else f"{path}"
            raise DataError(f"{where}: '{name}' is named twice (first as number {seen[name]}); rename one")
        seen[name] = number
    return names


def _by_number(path: Path, lines: Sequence[str]) -> list[str] | None:
    """The names in the order of their numbers; None where the lines have no numbers."""
    for delimiter in ",;\t":
        if all(delimiter in line for line in lines):
            rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
            return _from_table(path, rows)
    found = []
    for pairs in ([line.rsplit(None, 1) for line in lines], [line.split(None, 1)[::-1] for line in lines]):
        if all(len(pair) == 2 for pair in pairs) and (order := _order([pair[1] for pair in pairs])):
            found.append([pairs[i][0] for i in order])
    return _the_one(path, found)


def _from_table(path: Path, rows: Sequence[Sequence[str]]) -> list[str] | None:
    width = len(rows[0])
    if any(len(row) != width for row in rows):
        return None
    found = []
    for header in (0, 1):
        for column in range(width):
            order = _order([row[column] for row in rows[header:]])
            if order:
                others = [other for other in range(width) if other != column]
                title = [rows[0][other].lower() for other in others]
                named = [o for o, t in zip(others, title, strict=True) if t in ("name", "class_name", "class", "label")]
                name = named[0] if header and named else others[0]
                found.append([rows[header:][i][name] for i in order])
        if found:
            break
    return _the_one(path, found)


def _the_one(path: Path, found: Sequence[list[str]]) -> list[str] | None:
    if len(found) > 1 and found[0] != found[1]:
        raise DataError(
            f"{path}: both columns could be the labels; write one class name a line, in label order, without numbers"
        )
    return found[0] if found else None


def _order(numbers: Sequence[str]) -> list[int] | None:
    """Where the numbers 0, 1, 2, ... stand, or 1, 2, 3, ...; None where these are others."""
    if not all(number.isascii() and number.isdecimal() and len(number) <= _MOST_DIGITS for number in numbers):
        return None
    values = [int(number) for number in numbers]
    order = sorted(range(len(values)), key=values.__getitem__)
    start = values[order[0]] if order else 0
    return order if start in (0, 1) and [values[i] - start for i in order] == list(range(len(values))) else None


def names_from_folders(
    files: Iterable[str], labels: Iterable[int], num_classes: int, folder_of: Callable[[str], str]
) -> tuple[str, ...]:
    """Class names from the folders that the classes' files are in, or else the labels as text.

    A class is named by its folder where every class has one folder of its own. Otherwise it is named by as few of the
    path's last parts as tell all classes apart.

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
