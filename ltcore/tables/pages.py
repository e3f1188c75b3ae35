"""All tables as pages to look at: an index and a page a table, each in one file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from xml.etree.ElementTree import Element

from ltcore.errors import RunError, fault
from ltcore.files.writing import write_atomically
from ltcore.report.markup import append, details, element, render
from ltcore.sweeps.folder import folders
from ltcore.tables.records import Record
from ltcore.tables.state import Found, counted
from ltcore.tables.table import Table
from ltcore.tables.text import LEGEND, Cells, heading, heads, notes, ours, printed, signed, summary

#: Points of difference beyond which a cell has the darkest colour.
_FAR = 3.0
_KINDS = ("measured", "stale", "running", "failed", "missing", "waits")


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
        _write(folder / f"{table.name}.html", heading(table), [_back(), *_table(table, cells, reports)])
    index = folder / "index.html"
    _write(index, "Tables of experiments", _index(tables))
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


def _write(path: Path, title: str, content: Sequence[Element]) -> None:
    here = files(__package__)
    text = Template((here / "template.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=(here / "style.css").read_text(encoding="utf-8"),
        script=(here / "script.js").read_text(encoding="utf-8"),
        heading=render(element("h1", title)),
        content=render(*content),
    )
    write_atomically(path, text.encode(), "then write the pages again")


def _back() -> Element:
    return element("nav", element("a", "All tables", href="index.html"), aria_label="Pages")


def _index(tables: Sequence[tuple[Table, Cells]]) -> list[Element]:
    every = [found for _, cells in tables for found in cells.values()]
    counts = counted(every)
    rows = []
    for table, cells in tables:
        link = element("th", element("a", table.name, href=f"{table.name}.html"), scope="row")
        own = counted(list(cells.values()))
        rows.append(
            element(
                "tr",
                link,
                element("td", _bar(own)),
                element("td", str(own["cells"]), class_="number"),
                element("td", table.file.title),
                data_row=f"{table.name} {table.file.title} {table.file.source}".lower(),
            )
        )
    head = element("tr", *(element("th", text, scope="col") for text in ("table", "progress", "cells", "what")))
    total = f"{len(tables)} tables with {counts['cells']} cells: " + ", ".join(
        f"{counts[kind]} {'wait' if kind == 'waits' else kind}" for kind in _KINDS if counts[kind]
    )
    whole = element("table", element("caption", "All tables"), element("thead", head), element("tbody", *rows))
    return [element("p", total), _filter("table, method or paper"), _scrolling(whole, "All tables"), _key()]


def _bar(counts: Mapping[str, int]) -> Element:
    """How much of a table is measured, as a bar with its numbers for those who cannot see it."""
    said = ", ".join(f"{counts[kind]} {'wait' if kind == 'waits' else kind}" for kind in _KINDS if counts[kind])
    bar = element("span", class_="bar", role="img", aria_label=said, title=said)
    for kind in _KINDS:
        if counts[kind]:
            share = 100 * counts[kind] / counts["cells"]
            bar.append(element("span", class_=kind, style=f"width: {share:.2f}%"))
    return bar


def _key() -> Element:
    words = {"waits": "waits for a method, data or a tool", "missing": "can be run", "stale": "measured, changed since"}
    items = [element("li", element("span", class_=f"box {kind}"), words.get(kind, kind)) for kind in _KINDS]
    return element("ul", *items, class_="key")


def _filter(what: str) -> Element:
    field = element("input", type="search", id="filter", placeholder=what)
    return element("p", element("label", f"Show only ({what}): ", field), class_="filter")


def _table(table: Table, cells: Cells, reports: Reports) -> list[Element]:
    columns = list(table.file.columns)
    titles = heads(table)
    groups = list(dict.fromkeys(column.group for column in table.file.columns.values() if column.group))
    head = element("tr", element("th", "method", scope="col"))
    for name, title in zip(columns, titles, strict=True):
        head.append(element("th", title, scope="col", data_group=table.file.columns[name].group or None))
    rows = []
    for name, row in table.file.rows.items():
        line = element("tr", element("th", row.label, scope="row"), data_row=row.label.lower())
        for column in columns:
            found = cells.get((name, column))
            group = table.file.columns[column].group or None
            line.append(element("td", data_group=group) if found is None else _cell(table, found, group))
        rows.append(line)
    caption = table.file.title
    whole = element("table", element("caption", caption), element("thead", head), element("tbody", *rows))
    made = [element("p", summary(cells)), _filter("method")]
    if len(groups) > 1:
        buttons = [element("button", name, type="button", data_show=name, aria_pressed="true") for name in groups]
        made.append(element("p", "Data sets: ", *buttons, class_="groups"))
    made += [_scrolling(whole, caption), _scale()]
    made.append(element("section", element("p", "Choose a cell to see the runs behind it."), id="chosen"))
    for found in cells.values():
        made.append(_behind(table, found, reports))
    said = element("ul", *(element("li", text) for text in (*LEGEND, *notes(table, cells))))
    made.append(details("Notes", said, unfolded=True))
    return made


def _scrolling(whole: Element, label: str) -> Element:
    return element("div", whole, class_="scroll", role="region", aria_label=label, tabindex=0)


def _scale() -> Element:
    """What the colours of differences mean."""
    steps = [("below3", f"{_FAR:.0f} points worse or more"), ("below1", "a little worse"), ("even", "within 0.5")]
    steps += [("above1", "a little better"), ("above3", f"{_FAR:.0f} points better or more")]
    return element(
        "ul", *(element("li", element("span", class_=f"box {name}"), text) for name, text in steps), class_="key"
    )


def tone(found: Found) -> str:
    """The class of a cell's colour: how much better or worse ours is than what is printed, whichever way is better."""
    difference = found.difference
    if difference is None:
        return found.kind
    gain = -difference if found.cell.metric in ("error", "error5", "ece") else difference
    if abs(gain) <= 0.5:
        return "even"
    side = "above" if gain > 0 else "below"
    return f"{side}{3 if abs(gain) >= _FAR else 2 if abs(gain) >= _FAR / 2 else 1}"


def _cell(table: Table, found: Found, group: str | None) -> Element:
    decimals = table.file.decimals
    theirs, mine = printed(found, decimals, groups=False), ours(found, decimals)
    difference = found.difference
    button = element("button", type="button", data_cell=found.cell.name, class_="cell")
    if theirs:
        append(button, [element("span", theirs, class_="printed")])
    append(button, [element("span", mine, class_="ours")])
    if difference is not None:
        append(button, [element("span", signed(difference, decimals), class_="difference")])
    return element("td", button, class_=tone(found), data_group=group)


def _behind(table: Table, found: Found, reports: Reports) -> Element:
    """What stands under the table once a cell is chosen."""
    cell, decimals = found.cell, table.file.decimals
    titles = dict(zip(table.file.columns, heads(table), strict=True))
    title = f"{table.file.rows[cell.row].label}, {titles[cell.column]}"
    lines: list[Any] = [element("h2", title)]
    if theirs := printed(found, decimals):
        lines.append(element("p", f"{table.file.source} prints {theirs}."))
    words = {
        "waits": f"It cannot be run yet: it waits for {found.why}.",
        "missing": "It can be run, and is not measured.",
        "running": "It is being trained.",
        "failed": f"Its training failed: {found.why}",
        "stale": f"It was measured, and {found.why}.",
        "measured": "",
    }
    if words[found.kind]:
        lines.append(element("p", words[found.kind]))
    if not cell.waits:
        lines.append(element("p", element("code", cell.command)))
    if found.records:
        lines.append(_runs(found.records, reports))
        lines += [element("p", note) for note in dict.fromkeys(record.note for record in found.records) if note]
    lines += [element("p", text) for text in cell.notes]
    return element("section", *lines, class_="behind", data_behind=cell.name, hidden=True)


def _runs(records: Sequence[Record], reports: Reports) -> Element:
    names = ("seed", "top-1", "many", "medium", "few", "seconds", "where", "when", "commit", "file", "report")
    body = element("tbody")
    for record in sorted(records, key=lambda record: record.seed):
        content = record.content
        figures = content["figures"]
        texts = [str(record.seed)]
        for name in ("top1", "many", "medium", "few"):
            value = figures.get(name)
            texts.append("" if value is None else f"{100 * value:.2f}")
        texts += [str(content.get("seconds", "")), content.get("device_name") or content.get("device", "")]
        texts += [content.get("finished", ""), content.get("commit", ""), record.path.name]
        cells = [element("td", text) for text in texts]
        if report := reports.get((record.digest, record.seed)):
            cells.append(element("td", element("a", "report", href=report)))
        body.append(element("tr", *cells))
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in names)))
    return _scrolling(element("table", element("caption", "Runs"), head, body), "Runs")
