"""The command that measures this machine: `bench`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltcore.cli.parser import add_command, number_of, show


def bench(
    recipe: Path | None = None,
    sets: Sequence[str] = (),
    only: Sequence[str] = (),
    seconds: float = 20.0,
    compare: Path | None = None,
    as_json: bool = False,
) -> None:
    """Measure what this machine makes of a recipe: input, step, hooks, stages, start-up, memory. Nothing is kept.

    Without RECIPE it is noise of the size of CIFAR-100-LT, and ResNet-32. docs/performance.md says what each row means.

    Example: ltcore bench recipes/digits_lt_ofa_focal.yaml --only input step --seconds 1
    """
    from ltcore.bench.bench import bench as measured
    from ltcore.bench.text import render

    show(measured(recipe, sets, only, seconds, compare, _say), render, as_json)


def _say(text: str) -> None:
    """What is measured, for someone who waits for it."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def add(commands: Any) -> None:
    """Add this command to the command line."""
    command = add_command(commands, "bench", bench)
    command.recipe(required=False)
    text = "measure these parts alone: input, step, hooks, stages, start-up, memory"
    command.add_argument("--only", nargs="+", metavar="PART", help=text)
    text = "about so many for each part; by default 20"
    command.add_argument("--seconds", type=number_of("seconds"), metavar="N", help=text)
    text = "a program that takes turns, such as benchmarks/reference.py"
    command.add_argument("--compare", type=Path, metavar="PROGRAM", help=text)
    command.json()
