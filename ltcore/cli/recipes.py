"""The commands about recipes: `init`, `recipes`, `plan` and `schema`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltcore.cli.parser import Parser, add_command, number_of, show, show_page, whole
from ltcore.untrusted import printable


def init(folder: Path, out: Path = Path("recipe.yaml"), force: bool = False, **wished: Any) -> None:
    """Write a recipe that suits your own images and this machine, with the reasons. The folder is only read.

    DIR holds one folder per class, or the folders train, val and test with such folders in each. It may hold a table of
    labels (*.csv) instead, or split lists (*.txt) of lines 'relative/path label'.

    Example: ltcore init photos --out photos.yaml
    """
    from ltcore.init import write_recipe
    from ltcore.progress.wrapping import for_terminal

    print(for_terminal(write_recipe(folder, out, force, **wished), sys.stdout))


def list_recipes(as_json: bool = False) -> None:
    """List the recipes that come with ltcore, with their data and the figure that a paper published for each.

    Example: ltcore recipes list
    """
    from ltcore.shipped.recipes import recipe_rows, render_recipes

    show(recipe_rows(), render_recipes, as_json)


def copy_recipe(name: str, to: Path = Path(), force: bool = False) -> None:
    """Copy a recipe that comes with ltcore, and all that it extends, to run and to change.

    Example: ltcore recipes copy digits_lt_ofa_focal recipes
    """
    from ltcore.shipped import recipes

    files, missing = recipes.copy_recipe(name, to, force)
    print("\n".join(printable(path) for path in files))
    if missing:
        print(f"\nnot installed: pip install {' '.join(missing)}")
    print(f"\nltcore run {shlex.quote(printable(files[0]))}")


def show_recipe(name: str) -> None:
    """Print a recipe merged with all that it extends, and beside each value the file and line that says it, or default.

    Example: ltcore recipes show digits_lt_ofa_focal
    """
    from ltcore.shipped.annotated import annotated
    from ltcore.shipped.recipes import recipe_named

    path = Path(name)
    show_page(annotated(path if path.is_file() else recipe_named(name)))


def plan(
    recipe: Path,
    sets: Sequence[str] = (),
    as_json: bool = False,
    taps: bool = False,
    image_size: int | None = None,
) -> None:
    """Show which method answers which hook in each stage, what trains, sampler and schedule. Reads no data.

    Example: ltcore plan recipes/digits_lt_ofa_focal.yaml --taps --image-size 8
    """
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
    import json

    from ltcore.recipe.json_schema import recipe_schema

    content, skipped = recipe_schema()
    for reason in skipped:
        print(f"left out: {reason}", file=sys.stderr)
    print(json.dumps(content, indent=2))


def add(commands: Any) -> None:
    """Add these commands to the command line."""
    command = add_command(commands, "init", init)
    command.add_argument("--out", type=Path, metavar="RECIPE", help="the recipe to write; by default recipe.yaml")
    add_wishes(command)
    text = "List the recipes that come with ltcore, copy one, or show it with what it extends."
    example = "Example: ltcore recipes show digits_lt_ce"
    group = commands.add_parser("recipes", help=text, description=f"{text}\n\n{example}")
    nested = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_command(nested, "list", list_recipes).json()
    command = add_command(nested, "copy", copy_recipe)
    command.add_argument("name", metavar="NAME", help="a recipe's name, as list shows it")
    text = "the folder to copy into, by default the one you are in"
    command.add_argument("to", type=Path, metavar="DIR", nargs="?", default=Path(), help=text)
    command.flag("--force", "write over files that are there and differ")
    command = add_command(nested, "show", show_recipe)
    command.add_argument("name", metavar="NAME", help="a recipe's name, as list shows it, or a recipe file")
    command = add_command(commands, "plan", plan)
    command.recipe()
    command.flag("--taps", "the backbone's taps with the shape of a row, and whether it is a map or tokens")
    text = "pixels of a side, for --taps; by default the data's option image_size, or 32"
    command.add_argument("--image-size", type=whole, metavar="PIXELS", help=text)
    command.json()
    add_command(commands, "schema", schema)


def add_wishes(command: Parser) -> None:
    """Add the folder, and what a recipe for it may be asked to be."""
    command.add_argument("folder", type=Path, metavar="DIR", help="the folder of your images")
    command.flag("--force", "write over a recipe that is there")
    text = "what the folders in DIR are: fraction, a class each; folders, splits; by default what they look like"
    command.add_argument("--split", choices=("auto", "fraction", "folders"), help=text)
    command.add_argument("--weights", type=Path, metavar="FILE", help="start from this file of weights of --model")
    command.add_argument("--model", metavar="NAME", help="a network of timm; by default one that suits")
    command.flag("--pretrained", "start from timm's weights, which are fetched from its hub")
    text = "pixels of a side that images are brought to; by default what suits and fits the time"
    command.add_argument("--image-size", type=whole, metavar="PIXELS", help=text)
    command.add_argument("--epochs", type=whole, metavar="N", help="epochs of training; by default what fits the time")
    text = "train with this method, with what suits it: ofa, safa, stg, glag, cdt, ..."
    command.add_argument("--method", metavar="NAME", help=text)
    command.add_argument(
        "--minutes", type=number_of("minutes"), metavar="M", help="how long a run may take; by default 30"
    )
