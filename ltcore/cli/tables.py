"""The command `table`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.cli.parser import add_command, whole
from ltcore.errors import RecipeError

if TYPE_CHECKING:
    from ltcore.tables.table import Table

_SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json"}
_FORMATS = ("table", "markdown", "latex", "csv", "json")


def table(
    table: Path | None = None,
    run: bool = False,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    seeds: Sequence[str] = (),
    sets: Sequence[str] = (),
    jobs: int | None = None,
    threads: int | None = None,
    out: Path = Path("runs/tables"),
    results: Path | None = None,
    kind: str | None = None,
    to: Path | None = None,
    every: bool = False,
    html: Path | None = None,
) -> None:
    """Show what a paper's table prints beside what we have measured of it, and train what is missing.

    TABLE is a file such as tables/safa_1.yaml. With --run, cells that are not measured yet are trained. Each run leaves
    a small file under --results, and tables are made of these files alone.

    Example: ltcore table tables/safa_1.yaml --format markdown
    """
    from ltcore.tables.records import Records
    from ltcore.tables.state import States
    from ltcore.tables.table import Table
    from ltcore.tables.text import FORMATS

    if every or html is not None:
        folder = table or Path("tables")
        _all(folder, results or folder.parent / "results" / "runs", out, to or folder.parent / "docs/tables.md", html)
        return
    if table is None:
        raise RecipeError("ltcore table: name a TABLE, such as tables/safa_1.yaml, or --all for all of them")
    if to is not None:
        from ltcore.files.output import refuse_output

        refuse_output(to)
    if not table.parent.is_dir():
        text = "the papers' tables are in ltcore's repository; 'ltcore docs sweeps' says how to write one"
        raise RecipeError(f"{table}: there is no folder {table.parent}; {text}")
    asked = Table(table)
    records = results or table.parent.parent / "results" / "runs"
    if run:
        _run(asked, rows, columns, seeds, sets, jobs, threads, out, records)
    chosen = kind or (_SUFFIXES.get(to.suffix, "table") if to else "table")
    found = States(Records([records]), [out]).of(asked)
    places = asked.chosen(rows, columns)
    text = FORMATS[chosen](asked, {place: one for place, one in found.items() if place in places})
    if to is None:
        print(text, end="")
    else:
        from ltcore.files.output import write_output

        write_output(to, text)


def _run(
    table: Table,
    rows: Sequence[str],
    columns: Sequence[str],
    seeds: Sequence[str],
    sets: Sequence[str],
    jobs: int | None,
    threads: int | None,
    out: Path,
    records: Path,
) -> None:
    from ltcore.sweeps.engine import slots_of
    from ltcore.sweeps.grid import seeds_of
    from ltcore.sweeps.work import raise_failed
    from ltcore.tables.running import run_cells

    wanted = seeds_of(seeds) if seeds else table.file.seeds
    cells = list(table.chosen(rows, columns).values())
    try:
        outcome = run_cells(table, cells, wanted, sets, slots_of(jobs, threads), out, records)
    except KeyboardInterrupt as stop:
        stop.args = (f"{stop}; to go on, start the same command again",)
        raise
    raise_failed(outcome, out)


def _all(folder: Path, results: Path, work: Path, page: Path, html: Path | None) -> None:
    from ltcore.tables.overview import overview
    from ltcore.tables.records import Records
    from ltcore.tables.state import States
    from ltcore.tables.table import find_tables

    if not folder.is_dir():
        raise RecipeError(f"{folder}: no such folder of tables")
    states = States(Records([results]), [work])
    found = [(table, states.of(table)) for table in find_tables(folder)]
    if html is not None:
        from ltcore.tables.pages import write_pages

        print(f"{write_pages(found, html, [work])} and {len(found)} pages beside it")
        return
    from ltcore.files.output import refuse_output, write_output

    refuse_output(page)
    write_output(page, overview(found))
    print(page, file=sys.stdout)


def add(commands: Any) -> None:
    """Add this command to the command line."""
    command = add_command(commands, "table", table)
    command.add_argument("table", type=Path, metavar="TABLE", nargs="?", default=None, help="a table's file (YAML)")
    command.flag("--run", "train the cells that are not measured yet, then show the table")
    text = "only these rows, by name; may be repeated"
    command.add_argument("--rows", action="extend", nargs="+", metavar="ROW", help=text)
    text = "only these columns, by name; may be repeated"
    command.add_argument("--columns", action="extend", nargs="+", metavar="COLUMN", help=text)
    text = "with --run, the seeds: 0..4, or 0,2,7; by default the table's own"
    command.add_argument("--seeds", action="append", metavar="SEEDS", help=text)
    text = "with --run, where things are and no setting of the experiment, such as data.options.root=DIR"
    command.add_argument("--set", action="append", dest="sets", metavar="PATH=VALUE", help=text)
    text = "with --run, runs at a time; by default one, or one for each GPU"
    command.add_argument("--jobs", type=whole, metavar="N", help=text)
    text = "with --run, threads of each run, where its recipe does not say; by default the cores are divided"
    command.add_argument("--threads", type=whole, metavar="N", help=text)
    command.add_argument("--out", type=Path, metavar="DIR", help="where it is trained; by default runs/tables")
    text = "the folder of the small files of runs; by default results/runs beside the table's folder"
    command.add_argument("--results", type=Path, metavar="DIR", help=text)
    text = "table, markdown, latex (booktabs), csv or json; by default what --to ends in, or table"
    command.add_argument("--format", dest="kind", choices=_FORMATS, metavar="FORMAT", help=text)
    command.add_argument("--to", type=Path, metavar="FILE", help="write to a file instead of printing")
    text = "all tables of the folder TABLE, by default tables, as one page: docs/tables.md"
    command.flag("--all", text, "every")
    text = "all tables as pages to look at, an index and one for each, without network"
    command.add_argument("--html", type=Path, metavar="DIR", help=text)
