"""A table's file and its cells: each is a recipe with changes, or waits for something."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ltcore.errors import RecipeError, listed, nearest
from ltcore.recipe.identity import digest
from ltcore.recipe.loading import LoadedRecipe, recipe_of
from ltcore.recipe.located import Located, Locator
from ltcore.recipe.merging import load_chain
from ltcore.recipe.validation import validate
from ltcore.recipe.yaml_source import read_recipe_file
from ltcore.tables.schema import ANALYSES, Metric, Printed, TableFile


@dataclass(frozen=True)
class Cell:
    """A place in a table where a figure stands.

    Attributes:
        row: the row's name.
        column: the column's name.
        printed: what the paper prints; None for a table of one's own.
        waits: what it cannot be run without; empty where it can be run.
        metric: what it shows.
        stage: the stage at whose end the figure is taken; None for the whole run after calibration.
        analysis: the analysis of the run that it shows; None for the run's result.
        notes: what a reader has to know of it, from table to cell.
        path: the recipe file; None where it waits.
        changes: of the recipe, each with its place in the table's file.
    """

    row: str
    column: str
    printed: Printed | None
    waits: str
    metric: Metric
    stage: str | None
    analysis: str | None
    notes: tuple[str, ...]
    path: Path | None
    changes: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """``ROW/COLUMN``."""
        return f"{self.row}/{self.column}"

    @property
    def command(self) -> str:
        """What trains it by hand."""
        sets = [word for text, _ in self.changes for word in ("--set", text)]
        return shlex.join(["ltcore", "run", str(self.path), *sets])


class Recipes:
    """Recipe files, each read once."""

    def __init__(self) -> None:
        self._read: dict[Path, Located] = {}

    def changed(
        self, path: Path, changes: Sequence[tuple[str, str | None]] = (), seed: int | None = None
    ) -> LoadedRecipe:
        """A recipe with changes.

        Raises:
            RecipeError: as of `ltcore.recipe.loading.load_recipe`.
        """
        if path not in self._read:
            self._read[path] = load_chain(path)
        return recipe_of(_fresh(self._read[path]), path, changes, seed)


class Table:
    """A table's file.

    Args:
        path: the file.
        recipes: recipe files that have been read.

    Raises:
        RecipeError: the file is wrong.
    """

    def __init__(self, path: Path, recipes: Recipes | None = None) -> None:
        self.path, self.name = path, path.stem
        root = read_recipe_file(path)
        self.locator = Locator(root, path)
        self.file = validate(TableFile, root.plain(), self.locator)
        self.recipes = recipes or Recipes()
        self._loaded: dict[str, LoadedRecipe] = {}

    @cached_property
    def cells(self) -> dict[tuple[str, str], Cell]:
        """All cells by row and column, row by row. Where a paper's row prints nothing there is none."""
        found = {}
        for row in self.file.rows:
            for index, column in enumerate(self.file.columns):
                cell = self._cell(row, index, column)
                if cell is not None:
                    found[row, column] = cell
        return found

    def loaded(self, cell: Cell, seed: int | None = None, sets: Sequence[str] = ()) -> LoadedRecipe:
        """A cell's recipe.

        Args:
            cell: the cell.
            seed: in place of the recipe's.
            sets: further changes from the command line.

        Raises:
            RecipeError: it waits for something, or its recipe or changes are wrong.
        """
        if cell.path is None:
            raise RecipeError(f"{self.path}: {cell.name} cannot be run: it waits for {cell.waits}")
        if seed is not None or sets:
            return self._load(cell, seed, sets)
        if cell.name not in self._loaded:
            self._loaded[cell.name] = self._load(cell)
        return self._loaded[cell.name]

    def _load(self, cell: Cell, seed: int | None = None, sets: Sequence[str] = ()) -> LoadedRecipe:
        assert cell.path is not None
        try:
            loaded = self.recipes.changed(cell.path, [*cell.changes, *((text, None) for text in sets)], seed)
        except RecipeError as error:
            raise RecipeError(*(f"{cell.name}: {line}" for line in error.lines)) from error
        names = [stage.name for stage in loaded.recipe.stages]
        if cell.stage is not None and cell.stage not in names:
            near = f"{nearest(cell.stage, names)} (known: {listed(names)})"
            raise RecipeError(f"{self.path}: {cell.name}: the recipe has no stage '{cell.stage}'{near}")
        if cell.analysis is not None and cell.analysis not in ANALYSES:
            method = cell.analysis.partition("/")[0]
            if method not in loaded.recipe.methods:
                near = f"{nearest(method, loaded.recipe.methods)} (known: {listed(loaded.recipe.methods)})"
                raise RecipeError(f"{self.path}: {cell.name}: the recipe has no method '{method}' to analyse{near}")
        return loaded

    def digest(self, cell: Cell) -> str:
        """The digest of a cell's recipe, the same for all seeds."""
        return digest(self.loaded(cell))

    def chosen(self, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> dict[tuple[str, str], Cell]:
        """The cells in these rows and columns; with none named, of all.

        Raises:
            RecipeError: there is no such row or column.
        """
        for kind, wanted, known in (("row", rows, self.file.rows), ("column", columns, self.file.columns)):
            for name in wanted:
                if name not in known:
                    near = nearest(name, known) or f"; known: {listed(known)}"
                    raise RecipeError(f"{self.path}: the table has no {kind} '{name}'{near}")
        return {
            place: cell
            for place, cell in self.cells.items()
            if (not rows or cell.row in rows) and (not columns or cell.column in columns)
        }

    def _cell(self, row_name: str, index: int, column_name: str) -> Cell | None:
        table, row, column = self.file, self.file.rows[row_name], self.file.columns[column_name]
        own = row.cells.get(column_name)
        printed = row.printed[index] if row.printed else None
        waits = (own and own.waits) or row.waits or column.waits
        if row.printed and printed is None:
            return None
        parts = [part for part in (row, column, own) if part is not None]
        words = {word: text for part in parts for word, text in part.words.items()}
        recipe = next((part.recipe for part in (own, row, column, table) if part is not None and part.recipe), None)
        if recipe is None and not waits:
            raise RecipeError(
                f"{self.locator.where('rows', row_name)}: {row_name}/{column_name} has no recipe; name one in the row, "
                "the column or the table, or say what it waits for"
            )
        places: list[tuple[Sequence[str], tuple[str, ...]]] = [
            (table.changes, ("changes",)),
            (row.changes, ("rows", row_name, "changes")),
            (column.changes, ("columns", column_name, "changes")),
            (own.changes if own else (), ("rows", row_name, "cells", column_name, "changes")),
        ]
        changes = tuple(
            (_filled(text, words), self.locator.where(*place, number))
            for texts, place in places
            for number, text in enumerate(texts)
        )
        metric = next((part.metric for part in reversed(parts) if part.metric), table.metric)
        stage = next((part.stage for part in reversed(parts) if part.stage), None)
        analysis = next((part.analysis for part in reversed(parts) if part.analysis), table.analysis)
        analysis = None if analysis is None else _filled(analysis, words)
        path = None
        if not waits:
            if wrong := _no_figure(metric, stage, analysis):
                raise RecipeError(f"{self.locator.where('rows', row_name)}: {row_name}/{column_name}: {wrong}")
            path = Path(os.path.normpath(self.path.parent / _filled(str(recipe), words)))
        return Cell(
            row=row_name,
            column=column_name,
            printed=printed if printed is None or isinstance(printed, Printed) else Printed(value=printed),
            waits=waits,
            metric=metric,
            stage=stage,
            analysis=analysis,
            notes=tuple(text for text in (*(part.note for part in parts), _note_of(printed)) if text),
            path=path,
            changes=changes if path else (),
        )


def _no_figure(metric: Metric, stage: str | None, analysis: str | None) -> str | None:
    """Why no run can have such a figure; None where one can."""
    if analysis is None:
        return "metric 'other' is for an analysis, and it names none" if metric == "other" else None
    if stage is not None:
        return "it names a stage and an analysis; an analysis is of the run's end"
    if analysis not in ANALYSES and analysis.count("/") < 3:
        own = f"{listed(ANALYSES)}, or METHOD/TITLE/ROW/COLUMN for a number of a table that a method shows in reports"
        return f"there is no analysis '{analysis}'{nearest(analysis, ANALYSES)}; known: {own}"
    metrics = ANALYSES.get(analysis, ("other",))
    return None if metric in metrics else f"the metric of '{analysis}' is {listed(metrics)}, and not '{metric}'"


def _note_of(printed: object) -> str:
    return printed.note if isinstance(printed, Printed) else ""


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(f"{{{word}}}", value)
    return text


def _fresh(node: Located) -> Located:
    """A tree of its own, to be changed."""
    if isinstance(node.value, dict):
        return Located({key: _fresh(child) for key, child in node.value.items()}, node.where, node.folder)
    if isinstance(node.value, list):
        return Located([_fresh(child) for child in node.value], node.where, node.folder)
    return node


def find_tables(folder: Path) -> Iterator[Table]:
    """The tables in a folder, by name.

    Raises:
        RecipeError: one is wrong.
    """
    recipes = Recipes()
    for path in sorted(folder.glob("*.yaml")):
        yield Table(path, recipes)
