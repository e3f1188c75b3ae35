"""The command line. What a command needs is imported inside it: ``ltcore --help`` and ``ltcore plugins`` stay light."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from ltcore import __version__
from ltcore.errors import LtcoreError

app = typer.Typer(
    name="ltcore",
    help="Train image classifiers on long-tailed data.\n\nExample: ltcore run recipes/digits_lt_ofa_focal.yaml",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
plugins_app = typer.Typer(
    help="List the installed methods, or show one.\n\nExample: ltcore plugins show ofa", rich_markup_mode=None
)
data_app = typer.Typer(
    help="List the data sets, or describe one.\n\nExample: ltcore data describe digits_lt",
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(plugins_app, name="plugins", invoke_without_command=True)
app.add_typer(data_app, name="data")

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (YAML).", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a value, e.g. stages.finetune.epochs=4. May be repeated."),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="The run's seed, in place of the recipe's.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def run(
    recipe: RecipeArgument,
    sets: SetOption = None,
    seed: SeedOption = None,
    out: Annotated[Path, typer.Option("--out", help="Where run directories are made.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the latest run of this very recipe.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train, evaluate and calibrate what a recipe describes.

    Example: ltcore run recipes/digits_lt_ofa_focal.yaml --set stages.finetune.iterations=100
    """
    from ltcore.recipe.loading import load_recipe

    loaded = load_recipe(recipe, sets or (), seed)

    from ltcore.console import Reporter
    from ltcore.run import execute

    execute(loaded, out, resume, Reporter())


@app.command()
def plan(
    recipe: RecipeArgument,
    sets: SetOption = None,
    as_json: JsonOption = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Show which method answers which hook in each stage, what trains, sampler and schedule. Reads no data.

    Example: ltcore plan recipes/digits_lt_ofa_focal.yaml
    """
    from ltcore.recipe.loading import load_recipe

    loaded = load_recipe(recipe, sets or ())

    from ltcore.plan import make_plan
    from ltcore.plan_text import describe, render

    described = describe(make_plan(loaded))
    print(json.dumps(described, indent=2) if as_json else render(described))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe with the installed plugins, for editors.

    Example: ltcore schema > recipe.schema.json
    """
    from ltcore.schema import recipe_schema

    content, skipped = recipe_schema()
    for reason in skipped:
        print(f"left out: {reason}", file=sys.stderr)
    print(json.dumps(content, indent=2))


@plugins_app.callback()
def plugins(
    context: typer.Context,
    as_json: JsonOption = False,
    really_import: Annotated[
        bool, typer.Option("--import", help="Import each one in another process, instead of reading its source.")
    ] = False,
) -> None:
    """List the installed methods with their hooks, and those that cannot be imported. Nothing is imported.

    Example: ltcore plugins
    """
    if context.invoked_subcommand is not None:
        return
    from ltcore.plugin_list import plugin_rows, render_plugins

    rows = plugin_rows(really_import)
    print(json.dumps(rows, indent=2) if as_json else render_plugins(rows))


@plugins_app.command("show")
def show_plugin(name: str, as_json: JsonOption = False) -> None:
    """Show a method's options, hooks and needs.

    Example: ltcore plugins show ofa
    """
    from ltcore.plugin_list import plugin_card, render_card

    card = plugin_card(name)
    print(json.dumps(card, indent=2) if as_json else render_card(card))


@data_app.command("list")
def list_data(as_json: JsonOption = False) -> None:
    """List the data sets that are installed.

    Example: ltcore data list
    """
    from ltcore.plugin_list import data_rows, render_data

    rows = data_rows()
    print(json.dumps(rows, indent=2) if as_json else render_data(rows))


@data_app.command("describe")
def describe_data(
    what: Annotated[str, typer.Argument(metavar="DATA", help="A data set's name, or a recipe file.")],
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show class counts, imbalance, shot groups and a histogram of a data set as a run would train on it.

    Example: ltcore data describe digits_lt --set data.imbalance.factor=10 --set data.imbalance.kind=exponential
    """
    from ltcore.data.describe import describe, render
    from ltcore.plugin_list import load_data

    description = describe(load_data(what, sets or ()), what)
    print(json.dumps(description, indent=2) if as_json else render(description))


def main() -> Any:
    """Run the command line: messages instead of tracebacks, and exit codes that say whose mistake it was."""
    debug = "--debug" in sys.argv
    try:
        app()
    except LtcoreError as error:
        if debug:
            traceback.print_exc()
        else:
            print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped; 'ltcore run RECIPE --resume' goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        hint = ""
        if type(error).__name__ == "OutOfMemoryError":
            hint = " Lower batch_size or eval_batch_size."
        print(
            f"ltcore failed: {type(error).__name__}: {error}.{hint} Run with --debug for the traceback, and please "
            "report it",
            file=sys.stderr,
        )
        sys.exit(1)
