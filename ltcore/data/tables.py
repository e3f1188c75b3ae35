"""Tables of images as text: CSV with commas, semicolons or tabs, with or without a header; or COCO's JSON."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltcore.data.coco import read_coco
from ltcore.data.image_files import is_image, read_text
from ltcore.errors import DataError, listed, nearest

#: How a column is asked for: by its name in the header, or by its number from 0.
Column = str | int


@dataclass(frozen=True)
class Table:
    """A table as it was read.

    Attributes:
        source: its path.
        columns: M names; numbers from 0 as text where there is no header.
        rows: N rows of M cells, without white space around them.
        lines: N line numbers; of JSON, the images' numbers from 1.
        header: whether it has one.
    """

    source: Path
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    lines: Sequence[int]
    header: bool

    def error(self, row: int, message: str) -> DataError:
        """An error about one row."""
        return DataError(f"{self.source}:{self.lines[row]}: {message}")

    def column(self, asked: Column, option: str) -> int:
        """Where a column stands that an option asks for.

        Raises:
            DataError: there is none of that name or number.
        """
        if isinstance(asked, int) and 0 <= asked < len(self.columns):
            return asked
        lower = [name.lower() for name in self.columns]
        if isinstance(asked, str) and asked.lower() in lower:
            return lower.index(asked.lower())
        hint = nearest(str(asked), self.columns)
        raise DataError(
            f"{self.source} has no column {asked!r} (data.options.{option}){hint or '.'} It has {listed(self.columns)}"
            + ("" if self.header else ", numbered since its first line is no header; data.options.header=true says so")
        )

    def called(self, names: Sequence[str]) -> int | None:
        """The first column that has one of some usual names; None where there is none."""
        if not self.header:
            return None
        lower = [name.lower().replace(" ", "_") for name in self.columns]
        return next((lower.index(name) for name in names if name in lower), None)


def read_table(path: Path, header: bool | None = None) -> Table:
    """Read a table. Empty lines are skipped.

    Args:
        path: the file. One that ends in ``.json`` has COCO's form, and is a table of ``file`` and ``label``: the names
            of the categories.
        header: whether its first line names the columns; None: unless that line has a cell that is called like an
            image.

    Raises:
        DataError: it cannot be read, has one column, no row, another number of cells in some line, or two columns of
            one name.
    """
    if path.suffix.lower() == ".json":
        files, categories, titles = read_coco(path)
        pairs = [[file, titles.get(each, str(each))] for file, each in zip(files, categories, strict=True)]
        return Table(path, ("file", "label"), pairs, range(1, len(pairs) + 1), True)
    lines = read_text(path).splitlines()
    first = next((line for line in lines if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    if not first.count(delimiter):
        raise DataError(f"{path}: its first line has no comma, semicolon or tab; a table has files and labels")
    reader = csv.reader(lines, delimiter=delimiter)
    rows, numbers = [], []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                numbers.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: this is no CSV ({error}); correct the line") from error
    for row, number in zip(rows, numbers, strict=True):
        if len(row) != len(rows[0]):
            raise DataError(
                f"{path}:{number}: {len(row)} cells, but the first line has {len(rows[0])}; put cells with the "
                "separator in them into quotes"
            )
    named = header if header is not None else not any(is_image(cell.rpartition("/")[2]) for cell in rows[0])
    columns = rows[0] if named else [str(number) for number in range(len(rows[0]))]
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise DataError(f"{path}: two columns are called '{twice[0]}'; rename one")
    if len(rows) == int(named):
        raise DataError(f"{path} has no row; write a file and a label a line")
    return Table(path, columns, rows[int(named) :], numbers[int(named) :], named)
