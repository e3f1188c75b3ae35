"""All tables as pages to look at: an index and a page a table, each in one file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltcore.errors import RunError, fault
from ltcore.files.writing import write_atomically
from ltcore.report.rendering import rendered
from ltcore.sweeps.folder import folders
from ltcore.tables.records import Record
from ltcore.tables.state import Found, counted
from ltcore.tables.table import Table
from ltcore.tables.text import LEGEND, Cells, heading, heads, notes, ours, printed, signed, summary

#: Points of difference beyond which a cell has the darkest colour.
_FAR = 3.0
_KINDS = ("measured", "stale", "running", "failed", "missing", "waits")
_WORDS = {"waits": "waits for a method, data or a tool", "missing": "can be run", "stale": "measured, changed since"}
#: What the colours of differences mean.
_SCALE = (
    ("below3", f"{_FAR:.0f} points worse or more"),
    ("below1", "a little worse"),
    ("even", "within 0.5"),
    ("above1", "a little better"),
    ("above3", f"{_FAR:.0f} points better or more"),
)
_RUN_FIGURES = ("top1", "many", "medium", "few")
_RUN_HEADS = ("seed", "top-1", "many", "medium", "few", "seconds", "where", "when", "commit", "file", "report")


#: By a recipe's digest and a seed, where the report of that run lies, from the pages' folder.
Reports = Mapping[tuple[str, int], str]


def write_pages(tables: Sequence[tuple[Table, Cells]], folder: Path, work: Sequence[Path] = ()) -> Path:
    """Write ``index.html`` and a page for each table, with the reports of those runs that are still there.

    Args:
        tables: each with what we have of it.
        folder: where to; made where it is missing.
        work: the directories of sweeps in which runs may lie.

    Returns:
        The index.

    Raises:
        RunError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made: {fault(error)}") from error
    reports = _write_reports(tables, folder, work)
    for table, cells in tables:
        _write(folder / f"{table.name}.html", kind="table", title=heading(table), **_table(table, cells, reports))
    index = folder / "index.html"
    _write(index, kind="index", title="Tables of experiments", **_index(tables))
    return index


def _write_reports(tables: Sequence[tuple[Table, Cells]], folder: Path, work: Sequence[Path]) -> Reports:
    """A report of each run behind a cell whose directory is there, without what needs its model or its data."""
    from ltcore.report import write_report

    wanted = {(one.digest, one.seed) for _, cells in tables for found in cells.values() for one in found.records}
    found = {}
    for place in work:
        for job in folders(place):
            key = job.about["digest"], job.about["seed"]
            if key in wanted and key not in found and (run := job.finished):
                (folder / "reports").mkdir(exist_ok=True)
                name = f"reports/{key[0]}-seed{key[1]}.html"
                write_report([run], folder / name, features=False, images=False)
                found[key] = name
    return found


def _write(path: Path, **content: Any) -> None:
    write_atomically(path, rendered("ltcore.tables", **content).encode(), "then write the pages again")


def _index(tables: Sequence[tuple[Table, Cells]]) -> dict[str, Any]:
    """What the template shows of all tables."""
    counts = counted([found for _, cells in tables for found in cells.values()])
    rows = []
    for table, cells in tables:
        own = counted(list(cells.values()))
        rows.append(
            {
                "name": table.name,
                "words": f"{table.name} {table.file.title} {table.file.source}".lower(),
                "said": _said(own),
                "shares": [(kind, f"{100 * own[kind] / own['cells']:.2f}") for kind in _KINDS if own[kind]],
                "cells": own["cells"],
                "title": table.file.title,
            }
        )
    total = f"{len(tables)} tables with {counts['cells']} cells: {_said(counts)}"
    return {"total": total, "rows": rows, "key": [(kind, _WORDS.get(kind, kind)) for kind in _KINDS]}


def _said(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[kind]} {'wait' if kind == 'waits' else kind}" for kind in _KINDS if counts[kind])


def _table(table: Table, cells: Cells, reports: Reports) -> dict[str, Any]:
    """What the template shows of a table."""
    groups = {name: column.group for name, column in table.file.columns.items()}
    rows = []
    for name, row in table.file.rows.items():
        found = [(cells.get((name, column)), group) for column, group in groups.items()]
        rows.append((row.label, [(_cell(table, each) if each else None, group) for each, group in found]))
    return {
        "caption": table.file.title,
        "summary": summary(cells),
        "groups": list(dict.fromkeys(group for group in groups.values() if group)),
        "columns": list(zip(heads(table), groups.values(), strict=True)),
        "rows": rows,
        "scale": _SCALE,
        "behind": [_behind(table, found, reports) for found in cells.values()],
        "run_heads": _RUN_HEADS,
        "notes": [*LEGEND, *notes(table, cells)],
    }


def tone(found: Found) -> str:
    """The class of a cell's colour: how much better or worse ours is than what is printed, whichever way is better."""
    difference = found.difference
    if difference is None or found.cell.metric == "other":  # of which neither more nor less is better
        return found.kind
    gain = -difference if found.cell.metric in ("error", "error5", "ece") else difference
    if abs(gain) <= 0.5:
        return "even"
    side = "above" if gain > 0 else "below"
    return f"{side}{3 if abs(gain) >= _FAR else 2 if abs(gain) >= _FAR / 2 else 1}"


def _cell(table: Table, found: Found) -> dict[str, Any]:
    decimals, difference = table.file.decimals, found.difference
    return {
        "name": found.cell.name,
        "tone": tone(found),
        "printed": printed(found, decimals, groups=False),
        "ours": ours(found, decimals),
        "difference": "" if difference is None else signed(difference, decimals),
    }


def _behind(table: Table, found: Found, reports: Reports) -> dict[str, Any]:
    """What stands under the table once a cell is chosen."""
    cell = found.cell
    titles = dict(zip(table.file.columns, heads(table), strict=True))
    said = []
    if theirs := printed(found, table.file.decimals):
        said.append(f"{table.file.source} prints {theirs}.")
    words = {
        "waits": f"It cannot be run yet: it waits for {found.why}.",
        "missing": "It can be run, and is not measured.",
        "running": "It is being trained.",
        "failed": f"Its training failed: {found.why}",
        "stale": f"It was measured, and {found.why}.",
        "measured": "",
    }
    if words[found.kind]:
        said.append(words[found.kind])
    if cell.analysis:
        said.append(f"It is an analysis of runs, '{cell.analysis}', and no result of them.")
    records = sorted(found.records, key=lambda record: record.seed)
    return {
        "name": cell.name,
        "title": f"{table.file.rows[cell.row].label}, {titles[cell.column]}",
        "said": said,
        "command": "" if cell.waits else cell.command,
        "runs": [(_run(record), reports.get((record.digest, record.seed))) for record in records],
        "notes": [*dict.fromkeys(record.note for record in found.records if record.note), *cell.notes],
    }


def _run(record: Record) -> list[str]:
    """The cells below `_RUN_HEADS` but the last."""
    content = record.content
    values = [content["figures"].get(name) for name in _RUN_FIGURES]
    texts = [str(record.seed), *("" if value is None else f"{100 * value:.2f}" for value in values)]
    texts += [str(content.get("seconds", "")), content.get("device_name") or content.get("device", "")]
    return [*texts, content.get("finished", ""), content.get("commit", ""), record.path.name]
