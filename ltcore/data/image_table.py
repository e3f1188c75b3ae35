"""Images with labels in a table: one label per row, or one column per class, and perhaps their splits and groups."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

from ltcore.contract.hook import hookimpl
from ltcore.contract.method import Method
from ltcore.contract.splits import DataSplits
from ltcore.data.fractions import FractionOptions, Fractions, refuse_crossing, split_images
from ltcore.data.image_files import check_files, file_split
from ltcore.data.image_list import ListedSplit, check_disjoint, imagenet_like, list_path
from ltcore.data.split_folders import NAMES, SPLITS, split_of
from ltcore.data.tables import Column, Table, read_table
from ltcore.errors import DataError, listed, nearest

#: Usual names of columns, the surest first.
FILE_NAMES = (
    *("file", "filename", "file_name", "filepath", "file_path", "path"),
    *("image", "image_name", "image_path", "img", "image_id", "id_code", "id"),
)
LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category", "dx", "diagnosis", "species")
_GROUPS = re.compile(r"patient|lesion|subject|burst|sequence|group|location")


class ImageTableOptions(FractionOptions):
    """Options of `ImageTable`."""

    root: str | None = None
    """Folder that the files' paths are relative to; by default the environment variable LTCORE_DATA. Files may also lie
    beside their table, in a folder of it."""
    table: str
    """The table, CSV with commas, semicolons or tabs, or JSON of COCO's form; looked for in the root, then where the
    command runs."""
    val: str | None = None
    """A second table, of validation images."""
    test: str | None = None
    """A second table, of test images; without it and without `split`, each class is split by fraction."""
    file: Column | None = None
    """Column of the files, by its name or its number from 0; by default one of a usual name, such as `file`."""
    label: Column | list[Column] | None = None
    """Column of the labels, text or numbers; or one column a class, of which a row has 1 in one and 0 in the others."""
    split: Column | None = None
    """Column of the splits (`train`, `val`, `test`, and other usual names); by default the one called `split`."""
    group: Column | None = None
    """Column of what images belong together by (patient, lesion, burst); no two splits share a group."""
    header: bool | None = None
    """Whether the first line names the columns; by default, unless it has a cell that is called like an image."""
    suffix: str = ""
    """What is missing at the end of the files' names, such as `.jpg`."""
    check_files: bool = True
    """Look whether every image is there before anything is trained."""


@dataclass(frozen=True)
class _Rows:
    """What a table says of N images: files, names of classes, splits and groups, where there are any."""

    table: Table
    files: list[str]
    classes: list[str]
    splits: list[str] | None
    groups: list[str] | None


class ImageTable(Method[ImageTableOptions]):
    """Images of a table with a row an image: its file and its label, and perhaps its split and its group."""

    summary = "images of a CSV table: file, label (or a column a class), and perhaps split and group"

    def __init__(self, options: ImageTableOptions) -> None:
        super().__init__(options)  # no defaults: `table` is required

    @property
    def provides(self) -> AbstractSet[str]:
        """Validation images, where a table or the split column names them, or a fraction is held out."""
        o = self.options
        if o.test is not None or o.val is not None:
            return {"validation"} if o.test is not None and o.val is not None else frozenset()
        try:
            splits = self._rows(self._root(), "table").splits
        except DataError:
            return frozenset()  # build_data says what is wrong with it
        validates = o.val_fraction > 0 if splits is None else {"val", "test"} <= set(splits)
        return {"validation"} if validates else frozenset()

    @property
    def by_fraction(self) -> bool:
        """Whether neither tables nor a column say the splits."""
        o = self.options
        return o.test is None and o.val is None and self._rows(self._root(), "table").splits is None

    def _root(self) -> Path:
        named = self.options.root or os.environ.get("LTCORE_DATA")
        if not named:
            raise DataError(
                "image_table: no folder is named that the table's paths are relative to; set data.options.root=DIR or "
                "the environment variable LTCORE_DATA"
            )
        return Path(named).expanduser()

    @hookimpl
    def build_data(self) -> DataSplits:
        """The splits; classes are the labels of the training rows, numbers in their order, text sorted.

        The images of a split are in the order of their classes and, within a class, of their paths, as `image_folder`
        has them: the order of the rows is no part of the data.
        """
        o, root = self.options, self._root()
        tables = {"train": self._rows(root, "table")} | {
            split: self._rows(root, split) for split in ("val", "test") if getattr(o, split) is not None
        }
        whole = tables["train"]
        if len(tables) > 1 and o.split is not None:
            raise DataError("data.options.split names a column of splits, beside tables of val or test; keep one")
        lists = [ListedSplit(rows.table.source, rows.files, (), rows.table.lines) for rows in tables.values()]
        check_disjoint(lists, root)
        if len(tables) == 1:
            chosen = self._chosen(whole)
            if not chosen.get("train"):
                raise DataError(f"{whole.table.source}: no row is of the training split")
            parts = {split: (whole, at) for split, at in chosen.items() if at}
        else:
            parts = {split: (rows, list(range(len(rows.files)))) for split, rows in tables.items()}
        if o.group is not None:
            groups = {split: [(rows.groups or [])[i] for i in at] for split, (rows, at) in parts.items()}
            refuse_crossing(groups, str(whole.table.source), "put all images of a group into one split")
        names = _in_order({whole.classes[i] for i in parts["train"][1]})
        notes = [_told(whole, o), *_unused(whole, names, o)]
        splits = {}
        for split in SPLITS:
            if split in parts:
                rows, at = parts[split]
                labels = _labels(rows, at, names, whole.table.source)
                ordered = sorted(zip(labels, (rows.files[i] for i in at), strict=True))
                files = [file for _, file in ordered]
                if o.check_files:
                    check_files(root, files, str(rows.table.source), "Correct data.options.root, file or suffix")
                splits[split] = file_split(root, files, [label for label, _ in ordered])
        if "test" not in splits:
            if "val" not in splits:
                raise DataError(f"{whole.table.source}: no image is left to test on; add test rows, or more images")
            notes.append("there are no test images: those of val are tested on")
            splits["test"] = splits.pop("val")
        return replace(imagenet_like(splits), class_names=tuple(names), notes=tuple(notes), grouped=o.group is not None)

    def _chosen(self, rows: _Rows) -> dict[str, list[int]]:
        o = self.options
        if rows.splits is not None:
            if unused := o.asked_for():
                raise DataError(
                    f"data.options.{unused[0]} splits by fraction, but {rows.table.source} says the splits; remove it"
                )
            return {split: [i for i, own in enumerate(rows.splits) if own == split] for split in SPLITS}
        place = {name: number for number, name in enumerate(sorted(set(rows.classes)))}
        units = rows.files if rows.groups is None else rows.groups
        return split_images([place[name] for name in rows.classes], units, Fractions.of(o))

    def _rows(self, root: Path, option: str) -> _Rows:
        o = self.options
        table = read_table(list_path(root, getattr(o, option), option), o.header)
        file = file_column(table, o.file)
        split = None if o.split is None else table.column(o.split, "split")
        if o.split is None and option == "table" and o.test is None and o.val is None:
            split = table.called(("split",))
        group = None if o.group is None else table.column(o.group, "group")
        beside = _beside(root, table.source, table.rows[0][file] + o.suffix)
        files = []
        for row, cells in enumerate(table.rows):
            if not cells[file]:
                raise table.error(row, f"column '{table.columns[file]}' names no file")
            files.append(beside + cells[file].removeprefix("./") + o.suffix)
        classes = classes_of_rows(table, o.label, {file, split, group})
        splits = None if split is None else [_split(table, row, split) for row in range(len(table.rows))]
        groups = None if group is None else [cells[group] for cells in table.rows]
        if groups is not None and "" in groups:
            raise table.error(groups.index(""), f"column '{o.group}' names no group; give a lone image one of its own")
        return _Rows(table, files, classes, splits, groups)


def _beside(root: Path, table: Path, first: str) -> str:
    """What stands before the files' names where they lie beside their table, in a folder of the root."""
    folder = os.path.relpath(table.absolute().parent, root.absolute()).replace(os.sep, "/")
    if folder == "." or folder.startswith("..") or (root / first).exists():
        return ""
    return f"{folder}/" if (root / folder / first).exists() else ""


def file_column(table: Table, asked: Column | None) -> int:
    """The column of the files.

    Raises:
        DataError: no column is asked for and none has a usual name.
    """
    if asked is not None:
        return table.column(asked, "file")
    found = table.called(FILE_NAMES) if table.header else 0
    if found is None:
        raise DataError(
            f"{table.source}: which of its columns {listed(table.columns)} names the files? Say so with "
            "data.options.file=NAME, or data.options.header=false if its first line is an image"
        )
    return found


def classes_of_rows(table: Table, asked: Column | list[Column] | None, taken: AbstractSet[int | None]) -> list[str]:
    """The class of each row."""
    others = [column for column in range(len(table.columns)) if column not in taken]
    if isinstance(asked, list):
        return _one_hot(table, [table.column(each, "label") for each in asked])
    column = table.called(LABEL_NAMES) if asked is None else table.column(asked, "label")
    if column is None and len(others) == 1:
        column = others[0]
    if column is None:
        if len(others) > 1 and all(cells[i] in _BITS for cells in table.rows[:100] for i in others):
            return _one_hot(table, others)
        raise DataError(
            f"{table.source}: which of its columns {listed(table.columns)} is the label? Say so with "
            "data.options.label=NAME, or data.options.label=[NAME, NAME, ...] for a column a class"
        )
    for row, cells in enumerate(table.rows):
        if not cells[column]:
            raise table.error(row, f"column '{table.columns[column]}' is empty; label the image or remove the row")
    return [cells[column] for cells in table.rows]


_BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1, "false": 0, "true": 1}


def _one_hot(table: Table, columns: Sequence[int]) -> list[str]:
    classes = []
    for row, cells in enumerate(table.rows):
        if wrong := [i for i in columns if cells[i] not in _BITS]:
            raise table.error(row, f"column '{table.columns[wrong[0]]}' is '{cells[wrong[0]]}', but must be 0 or 1")
        found = [table.columns[i] for i in columns if _BITS[cells[i]]]
        if len(found) != 1:
            many = f"1 in {len(found)} of {len(columns)} columns ({listed(found)})"
            raise table.error(row, f"an image has one class, but this row has {many}")
        classes += found
    return classes


def _split(table: Table, row: int, column: int) -> str:
    value = table.rows[row][column]
    split = split_of(value)
    if split is None:
        known = [name for names in NAMES.values() for name in names]
        raise table.error(
            row, f"column '{table.columns[column]}' is '{value}', which is no split; write one of {listed(known)}"
        )
    return split


def _labels(rows: _Rows, at: Sequence[int], names: Sequence[str], training: Path) -> list[int]:
    place: Mapping[str, int] = {name: label for label, name in enumerate(names)}
    for i in at:
        if rows.classes[i] not in place:
            raise rows.table.error(
                i,
                f"{rows.files[i]} is of class '{rows.classes[i]}', of which {training} has no training "
                f"image{nearest(rows.classes[i], names)}; add some, or remove the row",
            )
    return [place[rows.classes[i]] for i in at]


def _in_order(classes: AbstractSet[str]) -> list[str]:
    """Numbers by their value, text in the order of its characters."""
    if all(name.isascii() and name.isdecimal() for name in classes):
        # Not by int(), which refuses thousands of digits.
        return sorted(classes, key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name))
    return sorted(classes)


def _told(rows: _Rows, options: ImageTableOptions) -> str:
    table = rows.table
    file = table.columns[file_column(table, options.file)]
    kinds = [f"files from column '{file}'"]
    by_tables = options.test is not None or options.val is not None
    kinds.append("splits of their column" if rows.splits else "splits of tables" if by_tables else "split by fraction")
    kinds.append(f"groups from column '{options.group}'" if rows.groups else "no groups")
    return f"{table.source}: {len(rows.files)} rows, {', '.join(kinds)}"


def _unused(rows: _Rows, names: Sequence[str], options: ImageTableOptions) -> list[str]:
    """Columns that may be groups, and classes of the table that no image is of."""
    notes = []
    alike = [name for name in rows.table.columns if _GROUPS.search(name.lower())]
    if rows.groups is None and alike and rows.table.header and not rows.splits:
        notes.append(
            f"if images of one '{alike[0]}' belong together, data.options.group={alike[0]} keeps them in one split"
        )
    if isinstance(options.label, list) and (empty := [str(n) for n in options.label if str(n) not in names]):
        notes.append(f"columns without an image are no classes: {listed(empty)}")
    return notes
