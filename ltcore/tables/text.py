"""A table with what we have of it, as text for the terminal, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ltcore.compare.markup import latex, markdown
from ltcore.compare.testing import Spread
from ltcore.contract.figures import FIGURES
from ltcore.tables.schema import BESIDE
from ltcore.tables.state import Found, counted
from ltcore.tables.table import Table
from ltcore.untrusted import cell as safe
from ltcore.untrusted import printable

Cells = Mapping[tuple[str, str], Found]

#: What stands in place of a figure that we do not have.
SIGNS = {"running": "...", "failed": "failed", "missing": "?", "waits": "x", "measured": "", "stale": "°"}
#: How a note on cells of a kind begins.
_SAID = {"waits": "waits for", "stale": "stale:", "failed": "failed:", "measured": "of what is measured,"}
LEGEND = (
    "A cell: what the paper prints / what we have measured, mean ± standard deviation (number of seeds).",
    "? can be run and is not measured; x waits for what the notes say; ° measured before a recipe or method changed; "
    "... is being trained.",
)


def number(value: float | None, decimals: int) -> str:
    """A figure as a table shows it."""
    return "-" if value is None else f"{value:.{decimals}f}"


def signed(value: float, decimals: int) -> str:
    """A difference with its sign; none is never minus nought."""
    return f"{round(value, decimals) + 0:+.{decimals}f}"


def ours(found: Found, decimals: int) -> str:
    """What we have of a cell."""
    if found.ours.mean is None:
        return SIGNS[found.kind]
    sd = "" if found.ours.sd is None else f" ± {found.ours.sd:.{decimals}f}"
    return f"{number(found.ours.mean, decimals)}{sd} ({found.ours.n}){SIGNS[found.kind]}"


def printed(found: Found, decimals: int, groups: bool = True) -> str:
    """What a paper prints: ``44.4``, with groups ``44.4 [65.9 37.5 7.7]``."""
    figure = found.cell.printed
    if figure is None:
        return ""
    shown = number(figure.value, decimals)
    shown += "" if figure.sd is None else f" ± {figure.sd:.{decimals}f}"
    split = [getattr(figure, name) for name in ("many", "medium", "few")]
    if groups and any(value is not None for value in split):
        shown += f" [{' '.join(number(value, 1) for value in split)}]"
    if groups and figure.top5 is not None:
        shown += f" (top-5 {number(figure.top5, decimals)})"
    return shown


def whole(found: Found | None, decimals: int) -> str:
    """A cell's text: ``44.40 / 44.1 ± 0.2 (3)``; only ours where no paper prints anything."""
    if found is None:
        return ""
    theirs = printed(found, decimals)
    return f"{theirs} / {ours(found, decimals)}" if theirs else ours(found, decimals)


def notes(table: Table, cells: Cells) -> list[str]:
    """What stands below a table: its note, what cells wait for, what failed or is stale, and what rows say."""
    file = table.file
    said = [file.note] if file.note else []
    for kind, word in (
        ("waits", "waits for"),
        ("stale", "stale:"),
        ("failed", "failed:"),
        ("measured", "of what is measured,"),
    ):
        reasons: dict[str, list[Found]] = {}
        for found in cells.values():
            if found.kind == kind and found.why:
                reasons.setdefault(found.why, []).append(found)
        for why, members in reasons.items():
            rows = dict.fromkeys(file.rows[found.cell.row].label for found in members)
            said.append(f"{word} {why}: {', '.join(rows)}")
    analysed = dict.fromkeys(file.rows[found.cell.row].label for found in cells.values() if found.cell.analysis)
    if analysed:
        said.append(f"analyses of runs, and no results of them: {', '.join(analysed)}")
    titles = dict(zip(file.columns, heads(table), strict=True))
    for found in cells.values():
        for note in found.cell.notes:
            row, column = file.rows[found.cell.row], file.columns[found.cell.column]
            title = titles[found.cell.column]
            whose = row.label if note == row.note else title if note == column.note else f"{row.label}, {title}"
            said.append(f"{whose}: {note}")
    return list(dict.fromkeys(said))


def summary(cells: Cells) -> str:
    """``150 cells: 3 measured, 87 missing, 60 wait``."""
    counts = counted(list(cells.values()))
    words = {"waits": "wait"}
    parts = [f"{counts[kind]} {words.get(kind, kind)}" for kind in list(counts)[1:] if counts[kind]]
    return f"{counts['cells']} cells: {', '.join(parts)}"


def heads(table: Table) -> list[str]:
    """The columns' titles, with the group's before the first of it."""
    shown = []
    for column in table.file.columns.values():
        shown.append(f"{column.group} {column.label}".strip())
    return shown


def rows(table: Table, cells: Cells) -> list[list[str]]:
    """The texts of the cells, row by row, each behind the row's title; rows of which nothing was asked are left out."""
    decimals = table.file.decimals
    return [
        [row.label, *(whole(cells.get((name, column)), decimals) for column in table.file.columns)]
        for name, row in table.file.rows.items()
        if any((name, column) in cells for column in table.file.columns)
    ]


def _plain(table: Table, cells: Cells) -> str:
    from rich.cells import cell_len

    lines = [["", *heads(table)], *rows(table, cells)]
    lines = [[printable(text) for text in line] for line in lines]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = [
        "  ".join(text + " " * (width - cell_len(text)) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    below = [*LEGEND, *notes(table, cells), summary(cells)]
    title = printable(heading(table))
    return "\n".join([title, "", *shown, "", *map(printable, below)]) + "\n"


def heading(table: Table) -> str:
    """Title, source and metric; columns that have metrics of their own name them."""
    file = table.file
    names = {"error": "top-1 error", "error5": "top-5 error", "other": ""} | {
        name: figure.long for name, figure in FIGURES.items()
    }
    own = {part.metric for part in (*file.columns.values(), *file.rows.values()) if part.metric}
    said = any(word in file.title.lower() for word in ("accuracy", "error"))
    metric = "" if own or said else f", {names[file.metric]}"
    unit = "" if file.metric == "other" else f"{metric}, in percent"
    return f"{file.title}{f' ({file.source})' if file.source else ''}{unit}"


def _markdown(table: Table, cells: Cells) -> str:
    title = markdown(heading(table))
    lines = [["", *map(markdown, heads(table))], ["---", *["---:"] * len(table.file.columns)]]
    lines += [[markdown(text) for text in line] for line in rows(table, cells)]
    drawn = ["| " + " | ".join(line) + " |" for line in lines]
    below = [f"- {markdown(text)}" for text in (*notes(table, cells), summary(cells))]
    return "\n".join([f"{title}.", "", *drawn, "", *below]) + "\n"


def _latex(table: Table, cells: Cells) -> str:
    def shown(texts: Sequence[str]) -> str:
        return " & ".join("--" if text == "-" else latex(text) for text in texts) + r" \\"

    comments = ["needs \\usepackage{booktabs}", heading(table), *notes(table, cells)]
    groups = [column.group for column in table.file.columns.values()]
    above = []
    if any(groups):
        spans = [(group, groups.count(group)) for group in dict.fromkeys(groups)]
        above = [" & ".join(["", *(rf"\multicolumn{{{n}}}{{c}}{{{latex(name)}}}" for name, n in spans)]) + r" \\"]
        if [group for group, n in spans for _ in range(n)] != groups:
            above = []  # columns of one group that do not stand side by side
    titles = [column.label for column in table.file.columns.values()] if above else heads(table)
    body = [shown(line) for line in rows(table, cells)]
    return (
        "\n".join(
            [
                *(f"% {printable(text)}" for text in comments),
                rf"\begin{{tabular}}{{l{'r' * len(groups)}}}",
                r"\toprule",
                *above,
                shown(["", *titles]),
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
            ]
        )
        + "\n"
    )


def content(table: Table, cells: Cells) -> dict[str, Any]:
    """A table as plain data: ``name``, ``title``, ``source``, ``metric``, ``counts`` and ``cells``."""
    return {
        "name": table.name,
        "title": table.file.title,
        "source": table.file.source,
        "metric": table.file.metric,
        "counts": counted(list(cells.values())),
        "cells": [_cell(table, found) for found in cells.values()],
    }


def _cell(table: Table, found: Found) -> dict[str, Any]:
    cell = found.cell

    def told(figure: Spread) -> dict[str, Any] | None:
        return {"mean": figure.mean, "sd": figure.sd} if figure.n else None

    return {
        "row": cell.row,
        "column": cell.column,
        "labels": [table.file.rows[cell.row].label, table.file.columns[cell.column].label],
        "metric": cell.metric,
        "stage": cell.stage,
        "analysis": cell.analysis,
        "state": found.kind,
        "why": found.why,
        "printed": cell.printed.model_dump(exclude_defaults=True) if cell.printed else None,
        "measured": told(found.ours),
        "beside": {name: told(figure) for name, figure in found.beside.items() if figure.n},
        "seeds": list(found.seeds),
        "difference": found.difference,
        "command": None if cell.waits else cell.command,
        "digest": None if cell.waits else table.digest(cell),
        "records": [str(record.path) for record in found.records],
        "record_notes": _distinct(record.note for record in found.records),
        "notes": list(cell.notes),
    }


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, texts)))


def _json(table: Table, cells: Cells) -> str:
    return json.dumps(content(table, cells), indent=2) + "\n"


def _csv(table: Table, cells: Cells) -> str:
    stream = io.StringIO()
    extra = [f"printed_{name}" for name in BESIDE]
    names = ["table", "row", "column", "metric", "state", "printed", *extra, "mean", "sd", "seeds", "difference", "why"]
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    for found in cells.values():
        figure = found.cell.printed
        writer.writerow(
            {
                "table": safe(table.name),
                "row": safe(table.file.rows[found.cell.row].label),
                "column": safe(heads(table)[list(table.file.columns).index(found.cell.column)]),
                "metric": found.cell.metric,
                "state": found.kind,
                "printed": figure and figure.value,
                **{f"printed_{name}": figure and getattr(figure, name) for name in BESIDE},
                "mean": found.ours.mean,
                "sd": found.ours.sd,
                "seeds": " ".join(map(str, found.seeds)),
                "difference": found.difference,
                "why": safe(found.why),
            }
        )
    return stream.getvalue()


#: Name -> how a table is written.
FORMATS: dict[str, Callable[[Table, Cells], str]] = {
    "table": _plain,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "json": _json,
}
