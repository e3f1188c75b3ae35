"""The commands about runs that have ended: `compare` and `report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltcore.cli.parser import add_command, run_named, runs_named
from ltcore.contract.figures import COMPARED, FIGURES, FigureName
from ltcore.untrusted import printable

_SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json"}


def compare(
    runs: Sequence[Path],
    baseline: str | None = None,
    metrics: Sequence[FigureName] | None = None,
    stages: bool = False,
    kind: str | None = None,
    out: Path | None = None,
    any_environment: bool = False,
    classes: bool = False,
) -> None:
    """Average runs over their seeds, recipe by recipe, and test the differences from a baseline.

    Example: ltcore compare runs/digits_lt_ofa_focal --format markdown
    """
    from ltcore.compare import compare as compared
    from ltcore.compare.text import left_out, render

    if out is not None:
        from ltcore.files.output import refuse_output

        refuse_output(out)
    found = compared(runs, baseline, list(dict.fromkeys(metrics or COMPARED)), stages, any_environment, classes)
    chosen = kind or (_SUFFIXES.get(out.suffix, "table") if out else "table")
    text = render(found, chosen)
    if out is None:
        print(text, end="")
    else:
        from ltcore.files.output import write_output

        write_output(out, text)
    # CSV has no place for it, and a file is not what the user looks at now.
    if chosen == "csv" or out is not None:
        for line in left_out(found):
            print(line, file=sys.stderr)


def report(
    runs: Sequence[Path],
    out: Path = Path("report.html"),
    features: bool = True,
    images: bool = True,
    run_code: bool = False,
    analysis: bool = False,
    classes: Sequence[str] = (),
    figures: Path | None = None,
) -> None:
    """Draw one run, or several side by side, as one HTML page that needs no network.

    Example: ltcore report runs/digits_lt_ofa_focal/20261121-063900-seed0 -o report.html
    """
    from ltcore.files.output import is_stream
    from ltcore.report import write_report

    asked = [name.strip() for each in classes for name in each.split(",") if name.strip()]
    notes = write_report(runs, out, features, images, run_code, analysis, asked, figures)
    aside = is_stream(out)  # then what is printed must not run into the page
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr if aside else sys.stdout)
    if not aside:
        print(f"{printable(out)} ({out.stat().st_size / 1000:,.0f} kB)")
        if figures is not None:
            print(f"{printable(figures)}: every figure as SVG and PDF")


def add(commands: Any) -> None:
    """Add these commands to the command line."""
    command = add_command(commands, "compare", compare)
    command.add_argument(
        "runs",
        nargs="+",
        type=runs_named,
        metavar="RUNS",
        help="run directories, folders that hold them, or recipes' names",
    )
    text = "the recipe to test the others against; by default the first"
    command.add_argument("--baseline", metavar="NAME", help=text)
    text = f"a figure to show: {', '.join(FIGURES)}; may be repeated, and the first one is tested"
    command.add_argument(
        "--metric", action="append", dest="metrics", choices=tuple(FIGURES), metavar="METRIC", help=text
    )
    command.flag("--stages", "also the figures at each stage's end, and before and after calibration")
    command.flag("--classes", "also recall, precision and F1 of each class, the most frequent first")
    text = "average over runs of other code, versions, devices or numbers of threads too; never over other data"
    command.flag("--any-environment", text, "any_environment")
    text = "table, markdown, latex (booktabs), csv or json; by default what --out ends in, or table"
    kinds = ("table", "markdown", "latex", "csv", "json")
    command.add_argument("--format", dest="kind", choices=kinds, metavar="FORMAT", help=text)
    command.add_argument("--out", type=Path, metavar="FILE", help="write to a file instead of printing")
    command = add_command(commands, "report", report)
    command.add_argument(
        "runs", type=run_named, nargs="+", metavar="RUN", help="runs: their directories, a recipe's name, or latest"
    )
    text = "the page to write, by default report.html"
    command.add_argument("-o", "--out", type=Path, metavar="FILE", help=text)
    text = "leave out t-SNE, for which the model is rebuilt"
    command.add_argument("--no-features", action="store_false", dest="features", help=text)
    text = "leave out example images; with --no-features, the data is not read"
    command.add_argument("--no-images", action="store_false", dest="images", help=text)
    text = "names or numbers of classes, separated by commas, that t-SNE and curves show one by one; may be repeated"
    command.add_argument("--classes", action="append", metavar="A,B,C", help=text)
    text = "let all images go through the model of each stage once more: decision values, confusion before and after"
    command.flag("--analysis", f"{text} a stage, nearest class means, what methods show")
    text = "a folder that gets every figure of the page alone, as SVG and PDF of a paper's column width"
    command.add_argument("--figures", type=Path, metavar="DIR", help=text)
    command.run_code()
