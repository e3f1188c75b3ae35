"""What we have of a table: for each cell what a paper prints, what we have measured, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ltcore.compare.testing import Spread, spread
from ltcore.discovery import catalogue
from ltcore.errors import LtcoreError
from ltcore.sweeps.folder import folders
from ltcore.sweeps.jobs import code_of, uses_of
from ltcore.tables.records import Record, Records
from ltcore.tables.schema import BESIDE, Metric
from ltcore.tables.table import Cell, Table

Kind: TypeAlias = Literal["measured", "stale", "running", "failed", "missing", "waits"]

#: The spread of no figure.
NOTHING = Spread(None, None, 0)


@dataclass(frozen=True)
class Found:
    """What we have of a cell.

    Attributes:
        cell: the cell.
        kind: `measured`; `stale`, measured by a recipe or by methods that have changed since; `running`; `failed`;
            `missing`, it can be run; `waits`, it cannot.
        ours: mean and standard deviation over the seeds, in the cell's metric; in percent, but for `other`.
        beside: the same of the figures that may stand beside it (`BESIDE`).
        seeds: those that were measured.
        why: of what is stale, failed or waits; of what is measured, which seeds are left out.
        records: what it was taken from.
    """

    cell: Cell
    kind: Kind
    ours: Spread = NOTHING
    beside: Mapping[str, Spread] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    why: str = ""
    records: Sequence[Record] = ()

    @property
    def difference(self) -> float | None:
        """Ours minus what the paper prints, in points; None where either is missing."""
        printed = self.cell.printed
        if self.ours.mean is None or printed is None or printed.value is None:
            return None
        return self.ours.mean - printed.value


class States:
    """The states of tables' cells.

    Args:
        records: runs that have ended.
        work: the directories of sweeps that may be training cells now.
    """

    def __init__(self, records: Records, work: Sequence[Path] = ()) -> None:
        self.records = records
        self._jobs: dict[str, list[tuple[int, str, str]]] = {}
        self._code: dict[tuple[str, ...], dict[str, str]] = {}
        for folder in work:
            for job in folders(folder):
                failure = job.failure
                state = "done" if job.finished else "running" if job.locked else "failed" if failure else ""
                if state in ("running", "failed"):
                    why = str(failure["message"]) if failure else ""
                    self._jobs.setdefault(job.about["digest"], []).append((job.about["seed"], state, why))

    def of(self, table: Table) -> dict[tuple[str, str], Found]:
        """What we have of each cell of a table.

        Raises:
            RecipeError: a cell's recipe is wrong.
        """
        with catalogue.lent({}):  # what is installed is looked up once
            return {place: self._of(table, cell) for place, cell in table.cells.items()}

    def _of(self, table: Table, cell: Cell) -> Found:
        if cell.waits:
            return Found(cell, "waits", why=cell.waits)
        recipe = table.digest(cell)
        found = {seed: record for seed, record in self.records.of(recipe).items() if _has(record, cell)}
        stale = ""
        if found:
            changed = self._changed(table, cell, list(found.values()))
            fresh = {seed: record for seed, record in found.items() if seed not in changed}
            if fresh:
                found = fresh
            else:
                stale = next(iter(changed.values()))
        else:
            once = self.records.once_of(f"{table.name}/{cell.name}")
            found = {record.seed: record for record in once if _has(record, cell)}
            stale = "its recipe has changed since" if found else ""
        found, others = _of_one_data(found)
        figures = [found[seed].figures(cell.stage, cell.analysis) for seed in sorted(found)]
        ours = spread([shown(cell.metric, each) for each in figures])
        if ours.n:
            beside = {name: spread([_beside(cell.metric, name, each) for each in figures]) for name in BESIDE}
            kind: Kind = "stale" if stale else "measured"
            why = stale or (f"seeds {', '.join(map(str, others))} had other data, and are left out" if others else "")
            return Found(cell, kind, ours, beside, sorted(found), why, list(found.values()))
        jobs = self._jobs.get(recipe, [])
        if any(state == "running" for _, state, _ in jobs):
            return Found(cell, "running")
        if jobs:
            return Found(cell, "failed", why=jobs[0][2])
        return Found(cell, "missing")

    def _changed(self, table: Table, cell: Cell, records: Sequence[Record]) -> dict[int, str]:
        """By seed, why a record no longer stands for a cell."""
        loaded = table.loaded(cell)
        uses = tuple(map(loaded.told, uses_of(loaded)))
        try:
            now = self._code[uses] if uses in self._code else self._code.setdefault(uses, code_of(loaded))
        except LtcoreError as error:  # a method is not installed here, so nobody can say
            return {record.seed: str(error) for record in records}
        changed = {}
        for record in records:
            if names := record.other_code(now):
                changed[record.seed] = f"the code of {', '.join(names)} has changed since"
        return changed


def _has(record: Record, cell: Cell) -> bool:
    """Whether a record has the figure that a cell shows; an analysis may not have been made of it yet."""
    return shown(cell.metric, record.figures(cell.stage, cell.analysis)) is not None


def _of_one_data(records: Mapping[int, Record]) -> tuple[dict[int, Record], list[int]]:
    """The records of the data that most were trained on, and the seeds of the others; what is not known agrees."""
    prints = {seed: json.dumps(record.content["data"], sort_keys=True) for seed, record in records.items()}
    known = [text for text in prints.values() if text != "{}"]
    if len(set(known)) < 2:
        return dict(records), []
    most = max(dict.fromkeys(known), key=known.count)
    others = [seed for seed, text in prints.items() if text not in (most, "{}")]
    return {seed: record for seed, record in records.items() if seed not in others}, sorted(others)


def shown(metric: Metric, figures: Mapping[str, Any]) -> float | None:
    """A figure in a table's metric, from fractions in percent, `other` as it is; None where it is not known."""
    of = {"error": "top1", "error5": "top5"}.get(metric, metric)
    value = figures.get(of)
    if value is None:
        return None
    if metric == "other":
        return float(value)
    return 100 * (1 - value) if metric.startswith("error") else 100 * float(value)


def _beside(metric: Metric, name: str, figures: Mapping[str, Any]) -> float | None:
    value = figures.get(name)
    if value is None:
        return None
    return 100 * (1 - value) if metric.startswith("error") else 100 * float(value)


def counted(found: Sequence[Found]) -> dict[str, int]:
    """How many cells there are of each kind, and ``cells`` in all."""
    counts = {"cells": len(found)}
    for kind in ("measured", "stale", "running", "failed", "missing", "waits"):
        counts[kind] = sum(one.kind == kind for one in found)
    return counts
