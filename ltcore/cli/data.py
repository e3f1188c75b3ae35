"""The commands about data sets: `data list` and `data describe`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltcore.cli.parser import add_command, show


def list_data(as_json: bool = False) -> None:
    """List the data sets that are installed.

    Example: ltcore data list
    """
    from ltcore.listing.plugins import data_rows, render_data

    show(data_rows(), render_data, as_json)


def describe_data(
    what: str, sets: Sequence[str] = (), png: Path | None = None, verify: bool = False, as_json: bool = False
) -> None:
    """Show class counts, imbalance, shot groups and a histogram of a data set as a run would train on it.

    Broken images, duplicates and classes without test images are named, too.

    Example: ltcore data describe digits_lt --set data.imbalance.factor=10 --set data.imbalance.kind=exponential
    """
    from ltcore.data.describe import describe, render
    from ltcore.files.output import refuse_output, write_output
    from ltcore.listing.plugins import load_data

    if png is not None:
        refuse_output(png, "--png")
    found = describe(load_data(what, sets, verify), what)
    if png is not None:
        from ltcore.data.histogram import histogram

        write_output(png, histogram(found), "--png")
    show(found, render, as_json)


def add(commands: Any) -> None:
    """Add these commands to the command line."""
    text = "List the data sets, or describe one."
    group = commands.add_parser("data", help=text, description=f"{text}\n\nExample: ltcore data describe digits_lt")
    nested = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_command(nested, "list", list_data).json()
    command = add_command(nested, "describe", describe_data)
    command.add_argument("what", metavar="DATA", help="a data set's name, or a recipe file")
    command.add_argument("--png", metavar="FILE", type=Path, help="also draw the class counts into a PNG file")
    command.flag("--verify", "decode every image, and name those that cannot be")
    command.sets()
    command.json()
