"""The commands about results of runs: `report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltcore.cli.parser import add_command


def report(
    runs: Sequence[Path], out: Path = Path("report.html"), no_features: bool = False, no_images: bool = False
) -> None:
    """Draw one run, or several side by side, as one HTML page that needs no network.

    Example: ltcore report runs/digits_lt_ofa_focal/20261121-063900-seed0 -o report.html
    """
    from ltcore.report import write_report

    for note in write_report(runs, out, not no_features, not no_images):
        print(f"note: {note}")
    print(f"{out} ({out.stat().st_size / 1000:,.0f} kB)")


def add(commands: Any) -> None:
    """Add these commands to the command line."""
    command = add_command(commands, "report", report)
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="directories of runs")
    text = "the page to write, by default report.html"
    command.add_argument("-o", "--out", type=Path, metavar="FILE", help=text)
    command.flag("--no-features", "leave out t-SNE, for which the model is rebuilt", "no_features")
    command.flag("--no-images", "leave out example images; with --no-features, the data is not read", "no_images")
