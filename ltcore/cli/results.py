"""The commands about results of runs: `report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltcore.cli.parser import add_command


def report(runs: Sequence[Path], out: Path = Path("report.html"), features: bool = True, images: bool = True) -> None:
    """Draw one run, or several side by side, as one HTML page that needs no network.

    Example: ltcore report runs/digits_lt_ofa_focal/20261121-063900-seed0 -o report.html
    """
    from ltcore.report import write_report

    for note in write_report(runs, out, features, images):
        print(f"note: {note}")
    print(f"{out} ({out.stat().st_size / 1000:,.0f} kB)")


def add(commands: Any) -> None:
    """Add these commands to the command line."""
    command = add_command(commands, "report", report)
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="directories of runs")
    text = "the page to write, by default report.html"
    command.add_argument("-o", "--out", type=Path, metavar="FILE", help=text)
    text = "leave out t-SNE, for which the model is rebuilt"
    command.add_argument("--no-features", action="store_false", dest="features", help=text)
    text = "leave out example images; with --no-features, the data is not read"
    command.add_argument("--no-images", action="store_false", dest="images", help=text)
