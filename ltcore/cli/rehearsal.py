"""The commands that train a few steps without the data and keep nothing: `rehearse` and `trace`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltcore.cli.parser import Parser, add_command, show, whole


def rehearse(
    recipe: Path,
    sets: Sequence[str] = (),
    seed: int | None = None,
    steps: int = 5,
    counts: Path | None = None,
    as_json: bool = False,
) -> None:
    """Train a few steps of each stage on noise, and say what memory and time a run would take.

    The data is read only where the set does not state its class counts and --counts does not give them.

    Example: ltcore rehearse recipes/digits_lt_ofa_focal.yaml --steps 2
    """
    from ltcore.rehearsal.rehearsal import rehearse as found_by_rehearsing
    from ltcore.rehearsal.text import render

    show(found_by_rehearsing(recipe, sets, seed, steps, counts, _say), render, as_json)


def trace(recipe: Path, sets: Sequence[str] = (), counts: Path | None = None, as_json: bool = False) -> None:
    """Train the first steps of each stage on noise, and show which hooks they call and how long each takes.

    Example: ltcore trace recipes/digits_lt_ofa_focal.yaml
    """
    from ltcore.rehearsal.rehearsal import trace_hooks
    from ltcore.training.trace import render_all

    show(trace_hooks(recipe, sets, counts, _say), render_all, as_json)


def _say(text: str) -> None:
    """How far a rehearsal is, for someone who waits for it."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def add(commands: Any) -> None:
    """Add these commands to the command line."""
    command = add_command(commands, "rehearse", rehearse)
    command.recipe()
    command.seed()
    text = "how many steps to measure in an epoch, after two to warm up; by default 5"
    command.add_argument("--steps", type=whole, metavar="N", help=text)
    _counts(command)
    command.json()
    command = add_command(commands, "trace", trace)
    command.recipe()
    _counts(command)
    command.json()


def _counts(command: Parser) -> None:
    text = "JSON list of the training images of each class, in place of those the data set states"
    command.add_argument("--counts", type=Path, metavar="FILE", help=text)
