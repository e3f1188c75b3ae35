"""All tables on one page of Markdown: how much of each is measured, and what the difference is."""

from __future__ import annotations

from collections.abc import Sequence

from ltcore.compare.markup import markdown
from ltcore.tables.state import Found, counted
from ltcore.tables.table import Table
from ltcore.tables.text import FORMATS, Cells, heads, ours, printed, signed

Tables = Sequence[tuple[Table, Cells]]

_KINDS = ("measured", "stale", "running", "failed", "missing", "waits")
_HEAD = """# Tables

This page shows how much of each table we have measured. `ltcore table --all` writes it, so edit nothing here. A *cell*
is one figure of a table. The columns below count cells:

- *measured*: we have our own figure
- *stale*: measured, but the recipe or a method has changed since then
- *running* and *failed*: a training runs, or has failed
- *missing*: can be run, and is not measured yet
- *waits*: cannot be run yet; the page says what is missing

An empty place means 0. Our figures are means ± standard deviations, and the number in brackets is the number of seeds.
The sign ° marks stale figures. [Tables and sweeps](sweeps.md#a-tables-file) explains how a table is written and how its
cells are trained.
"""


def overview(tables: Tables) -> str:
    """The page.

    Args:
        tables: each table with what we have of it.
    """
    from_papers = [(table, cells) for table, cells in tables if table.file.source]
    own = [(table, cells) for table, cells in tables if not table.file.source]
    parts = [_HEAD, "## The papers' tables\n", _counts(from_papers)]
    if own:
        parts += ["## Our own\n", _counts(own)]
    waits = _waits(from_papers)
    if waits:
        parts += ["## What cells wait for\n", waits]
    measured = [(table, cells) for table, cells in tables if any(found.ours.n for found in cells.values())]
    if measured:
        parts.append("## What is measured\n")
        parts += [_measured(table, cells) for table, cells in measured]
    return "\n".join(parts)


def _counts(tables: Tables) -> str:
    lines = [f"| table | what | cells | {' | '.join(_KINDS)} |", f"| --- | --- |{' ---: |' * (1 + len(_KINDS))}"]
    total = dict.fromkeys(("cells", *_KINDS), 0)
    for table, cells in tables:
        counts = counted(list(cells.values()))
        total = {name: total[name] + counts[name] for name in total}
        place = f"[{table.name}](../tables/{table.name}.yaml)"
        numbers = " | ".join(str(counts[name] or "") for name in _KINDS)
        lines.append(f"| {place} | {markdown(table.file.title)} | {counts['cells']} | {numbers} |")
    lines.append(f"| all |  | {total['cells']} | {' | '.join(str(total[name]) for name in _KINDS)} |")
    return "\n".join(lines) + "\n"


def _waits(tables: Tables) -> str:
    reasons: dict[str, dict[str, int]] = {}
    for table, cells in tables:
        for found in cells.values():
            if found.kind == "waits":
                of = reasons.setdefault(found.why, {})
                of[table.name] = of.get(table.name, 0) + 1
    lines = ["| what for | cells | where |", "| --- | ---: | --- |"]
    for why, names in sorted(reasons.items(), key=lambda item: -sum(item[1].values())):
        lines.append(f"| {markdown(why)} | {sum(names.values())} | {', '.join(names)} |")
    return "\n".join(lines) + "\n" if reasons else ""


def _measured(table: Table, cells: Cells) -> str:
    """The cells that are measured, a line each; a table of one's own, which has nothing to compare with, as it is."""
    if not table.file.source:
        return f"### {table.name}\n\n{FORMATS['markdown'](table, cells)}"
    titles = dict(zip(table.file.columns, heads(table), strict=True))
    decimals = table.file.decimals
    source = f" ({markdown(table.file.source)})" if table.file.source else ""
    lines = [f"### {markdown(table.file.title)}{source}\n"]
    lines += ["| row | column | printed | ours (seeds) | difference |", "| --- | --- | ---: | ---: | ---: |"]
    for found in cells.values():
        if found.ours.n:
            lines.append(_line(table, found, titles, decimals))
    return "\n".join(lines) + "\n"


def _line(table: Table, found: Found, titles: dict[str, str], decimals: int) -> str:
    difference = "" if found.difference is None else signed(found.difference, decimals)
    texts = [table.file.rows[found.cell.row].label, titles[found.cell.column]]
    texts += [printed(found, decimals), ours(found, decimals), difference]
    return f"| {' | '.join(map(markdown, texts))} |"
