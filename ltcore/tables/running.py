"""Training what a table lacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltcore.errors import LtcoreError, RecipeError, RunError, listed
from ltcore.recipe.identity import digest, in_fp32
from ltcore.sweeps.engine import Outcome, Slots
from ltcore.sweeps.folder import JobFolder
from ltcore.sweeps.work import prepared, train
from ltcore.tables.records import Records, record_of, write_record
from ltcore.tables.state import States
from ltcore.tables.table import Cell, Table
from ltcore.tables.text import FORMATS


def run_cells(
    table: Table,
    cells: Sequence[Cell],
    seeds: Sequence[int],
    sets: Sequence[str],
    slots: Slots,
    work: Path,
    records: Path,
) -> Outcome:
    """Train the cells' runs that no record stands for, write a record of each, and make the analyses that cells name.

    Args:
        table: the table.
        cells: those that are wanted; what waits for something is passed over.
        seeds: the seeds of each.
        sets: changes that say where things are; they must not change an experiment.
        slots: what to train on.
        work: the directory of the sweep.
        records: the folder of records.

    Raises:
        RecipeError: `sets` change an experiment, or none of the cells can be run.
        KeyboardInterrupt: it was told to stop.
    """
    runnable = [cell for cell in cells if not cell.waits]
    if not runnable:
        reasons = ", ".join(dict.fromkeys(cell.waits for cell in cells))
        raise RecipeError(f"{table.path}: none of the {len(cells)} cells can be run; they wait for {reasons}")
    known = States(Records([records])).of(table)
    asked, analyses = [], []
    for cell in runnable:
        found = known[cell.row, cell.column]
        done = found.seeds if found.kind == "measured" else ()
        for seed in (seed for seed in seeds if seed not in done):
            loaded = table.loaded(cell, seed, sets)
            if digest(loaded) != table.digest(cell):
                raise RecipeError(
                    f"--set {' --set '.join(sets)}: changes what {table.name} {cell.name} is; a table's cell is one "
                    "experiment, so say only where things are, such as data.options.root=DIR, or use ltcore sweep"
                )
            asked.append((f"{table.name}/{cell.name}", in_fp32(loaded)))
            analyses.append(cell.analysis)
    if not asked:
        return Outcome()
    mine, every = prepared(asked, work)
    cells_of: dict[str, list[str]] = {}
    for (name, _), job in zip(asked, mine, strict=True):
        cells_of.setdefault(job.address, []).append(name)
    written: set[str] = set()

    def keep() -> str:
        """Write the records of runs that have ended since, and show the table."""
        for job in mine:
            if job.address not in written and (run := job.finished):
                write_record(records, record_of(run, cells_of[job.address]))
                written.add(job.address)
        return FORMATS["table"](table, States(Records([records]), [work]).of(table))

    try:
        outcome = train(every, slots, keep)
    finally:
        keep()
    wanted: dict[JobFolder, list[str]] = {}
    for job, analysis in zip(mine, analyses, strict=True):
        if analysis is not None and analysis not in wanted.setdefault(job, []):
            wanted[job].append(analysis)
    for job, names in wanted.items():
        if run := job.finished:
            try:
                _analyse(run, names, cells_of[job.address], records)
            except LtcoreError as error:  # the other runs are analysed all the same
                outcome.failed[job.address] = str(error)
    return outcome


def _analyse(run: Path, names: Sequence[str], cells: Sequence[str], records: Path) -> None:
    """Make analyses of a run, and write them into its record.

    Raises:
        LtcoreError: its model or data cannot be read, or it has no such figure; those that it has are kept.
    """
    from ltcore.report.measured import measured  # torch

    found = measured(run, names)
    write_record(records, record_of(run, cells, found))
    missing = [name for name in names if name not in found]
    if missing:
        raise RunError(f"{run}: no analysis of it gives {listed(missing)}; mend the table's analysis")
