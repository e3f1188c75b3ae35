"""The command that trains: `run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltcore.cli.parser import add_command


def run(
    recipe: Path,
    sets: Sequence[str] = (),
    seed: int | None = None,
    out: Path = Path("runs"),
    resume: bool = False,
    source: Path | None = None,
    log: Sequence[str] = (),
    verify: bool = False,
) -> None:
    """Train, evaluate and calibrate what a recipe describes.

    Example: ltcore run recipes/digits_lt_ofa_focal.yaml --set stages.finetune.iterations=100
    """
    from ltcore.recipe.loading import load_recipe

    loaded = load_recipe(recipe, sets, seed)

    from ltcore.progress.logs import LoggingReporter, refuse_missing

    refuse_missing(log)

    from ltcore.training.execute import execute

    execute(loaded, out, resume, LoggingReporter(log, loaded.source), source, verify=verify)


def add(commands: Any) -> None:
    """Add this command to the command line."""
    command = add_command(commands, "run", run)
    command.recipe()
    command.seed()
    command.add_argument("--out", type=Path, metavar="DIR", help="where run directories are made; by default runs")
    command.flag("--resume", "go on with the latest run of this very recipe")
    command.flag("--verify", "decode every image before training, and name those that cannot be")
    text = "take over the first stages of a run that has ended, as many as are the same in both recipes"
    command.add_argument("--from", type=Path, dest="source", metavar="RUN", help=text)
    text = "also log to tensorboard or wandb (extras tb and wandb of ltcore); may be repeated"
    command.add_argument("--log", action="append", choices=("tensorboard", "wandb"), metavar="WHERE", help=text)
