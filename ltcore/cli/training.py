"""The commands around a run: `run`, `init`, `plan` and `schema`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltcore.cli.parser import add_command, minutes, show, whole
from ltcore.errors import RecipeError


def run(
    recipe: Path,
    sets: Sequence[str] = (),
    seed: int | None = None,
    out: Path = Path("runs"),
    resume: bool = False,
    source: Path | None = None,
    rehearse: int | None = None,
    counts: Path | None = None,
    as_json: bool = False,
    log: Sequence[str] = (),
) -> None:
    """Train, evaluate and calibrate what a recipe describes; or rehearse it without its data.

    Example: ltcore run recipes/digits_lt_ofa_focal.yaml --set stages.finetune.iterations=100
    """
    if rehearse is not None:
        if resume or source is not None:
            raise RecipeError("a rehearsal goes on from no run; leave --resume and --from out")
        if log:
            raise RecipeError("a rehearsal has nothing to log; leave --log out")
        from ltcore.rehearsal.rehearsal import rehearse as found_by_rehearsing
        from ltcore.rehearsal.text import render

        show(found_by_rehearsing(recipe, sets, seed, rehearse, counts, _say), render, as_json)
        return
    if counts is not None or as_json:
        raise RecipeError("--counts and --json belong to a rehearsal; add --rehearse")
    from ltcore.recipe.loading import load_recipe

    loaded = load_recipe(recipe, sets, seed)

    from ltcore.progress.logs import LoggingReporter, refuse_missing

    refuse_missing(log)

    from ltcore.training.execute import execute

    execute(loaded, out, resume, LoggingReporter(log, loaded.source), source)


def _say(text: str) -> None:
    """How far a rehearsal is, for someone who waits for it."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def init(folder: Path, out: Path = Path("recipe.yaml"), force: bool = False, **wished: Any) -> None:
    """Write a recipe that suits your own images and this machine, with the reasons. The folder is only read.

    DIR holds a folder a class, or the folders train, val and test with such folders in each, or split lists (*.txt)
    of lines 'relative/path label'.

    Example: ltcore init photos --out photos.yaml
    """
    from ltcore.init import write_recipe

    print(write_recipe(folder, out, force, **wished))


def plan(
    recipe: Path,
    sets: Sequence[str] = (),
    as_json: bool = False,
    taps: bool = False,
    image_size: int | None = None,
    trace: bool = False,
    counts: Path | None = None,
) -> None:
    """Show which method answers which hook in each stage, what trains, sampler and schedule. Reads no data.

    With --trace, show which hooks the first steps of each stage call, and how long they take, on noise.

    Example: ltcore plan recipes/digits_lt_ofa_focal.yaml --taps --image-size 8
    """
    if trace:
        if taps or image_size:
            raise RecipeError("--trace shows no taps; leave --taps and --image-size out")
        from ltcore.rehearsal.rehearsal import trace_hooks
        from ltcore.training.trace import render_all

        show(trace_hooks(recipe, sets, counts, _say), render_all, as_json)
        return
    if counts is not None:
        raise RecipeError("--counts belongs to a trace; add --trace")
    from ltcore.recipe.loading import load_recipe

    loaded = load_recipe(recipe, sets)

    from ltcore.plan.plan import make_plan
    from ltcore.plan.text import describe, describe_taps, render

    made = make_plan(loaded, to_run=False)
    described = describe(made)
    if taps or image_size:
        described["backbone"] |= describe_taps(made, image_size)
    show(described, render, as_json)


def schema() -> None:
    """Print the JSON Schema of a recipe with the installed plugins, for editors.

    Example: ltcore schema > recipe.schema.json
    """
    from ltcore.recipe.json_schema import recipe_schema

    content, skipped = recipe_schema()
    for reason in skipped:
        print(f"left out: {reason}", file=sys.stderr)
    print(json.dumps(content, indent=2))


def add(commands: Any) -> None:
    """Add these commands to the command line."""
    command = add_command(commands, "run", run)
    command.recipe()
    command.add_argument("--seed", type=int, help="the run's seed, in place of the recipe's")
    command.add_argument("--out", type=Path, metavar="DIR", help="where run directories are made; by default runs")
    command.flag("--resume", "go on with the latest run of this very recipe")
    text = "take over the first stages of a run that has ended, as many as are the same in both recipes"
    command.add_argument("--from", type=Path, dest="source", metavar="RUN", help=text)
    text = "train N steps a stage (by default 5) on noise instead; print memory and the time a run would take"
    command.add_argument("--rehearse", type=whole, nargs="?", const=5, metavar="N", help=text)
    text = "for --rehearse: JSON list of the training images of each class, in place of those the data set states"
    command.add_argument("--counts", type=Path, metavar="FILE", help=text)
    command.json()
    text = "also log to tensorboard or wandb (extras tb and wandb of ltcore); may be repeated"
    command.add_argument("--log", action="append", choices=("tensorboard", "wandb"), metavar="WHERE", help=text)
    command = add_command(commands, "init", init)
    command.add_argument("folder", type=Path, metavar="DIR", help="the folder of your images")
    command.add_argument("--out", type=Path, metavar="RECIPE", help="the recipe to write; by default recipe.yaml")
    command.flag("--force", "write over a recipe that is there")
    command.add_argument("--weights", type=Path, metavar="FILE", help="start from this file of weights of --model")
    command.add_argument("--model", metavar="NAME", help="a network of timm; by default one that suits")
    command.flag("--pretrained", "start from timm's weights, which are fetched from its hub")
    text = "pixels of a side that images are brought to; by default what suits and fits the time"
    command.add_argument("--image-size", type=whole, metavar="PIXELS", help=text)
    command.add_argument("--epochs", type=whole, metavar="N", help="epochs of training; by default what fits the time")
    command.add_argument("--minutes", type=minutes, metavar="M", help="how long a run may take; by default 30")
    command = add_command(commands, "plan", plan)
    command.recipe()
    command.flag("--taps", "the backbone's taps with the shape of a row, and whether it is a map or tokens")
    text = "pixels of a side, for --taps; by default the data's option image_size, or 32"
    command.add_argument("--image-size", type=whole, metavar="PIXELS", help=text)
    command.flag("--trace", "train the first steps of each stage on noise instead; print what each hook takes")
    text = "for --trace: JSON list of the training images of each class, in place of those the data set states"
    command.add_argument("--counts", type=Path, metavar="FILE", help=text)
    command.json()
    add_command(commands, "schema", schema)
