"""The command line. What a command needs is imported inside it: ``ltcore --help`` and ``ltcore plugins`` stay light.

It is argparse because that starts in 10 ms. typer and cyclopts would read the type hints for us, but what they import
(pydantic, rich) takes longer than all of ``ltcore plugins``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ltcore import __version__
from ltcore.errors import LtcoreError, RecipeError


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
) -> None:
    """Train, evaluate and calibrate what a recipe describes; or rehearse it without its data.

    Example: ltcore run recipes/digits_lt_ofa_focal.yaml --set stages.finetune.iterations=100
    """
    if rehearse is not None:
        if resume or source is not None:
            raise RecipeError("a rehearsal goes on from no run; leave --resume and --from out")
        from ltcore.rehearsal import rehearse as found_by_rehearsing
        from ltcore.rehearsal_text import render

        def say(text: str) -> None:
            if sys.stderr.isatty():
                print(text, file=sys.stderr)

        _show(found_by_rehearsing(recipe, sets, seed, rehearse, counts, say), render, as_json)
        return
    if counts is not None or as_json:
        raise RecipeError("--counts and --json belong to a rehearsal; add --rehearse")
    from ltcore.recipe.loading import load_recipe

    loaded = load_recipe(recipe, sets, seed)

    from ltcore.console import Reporter
    from ltcore.run import execute

    execute(loaded, out, resume, Reporter(), source)


def init(folder: Path, out: Path = Path("recipe.yaml"), force: bool = False, **wished: Any) -> None:
    """Write a recipe that suits your own images and this machine, with the reasons. The folder is only read.

    DIR holds a folder a class, or the folders train, val and test with such folders in each, or split lists (*.txt)
    of lines 'relative/path label'.

    Example: ltcore init photos --out photos.yaml
    """
    from ltcore.init import write_recipe

    print(write_recipe(folder, out, force, **wished))


def plan(
    recipe: Path, sets: Sequence[str] = (), as_json: bool = False, taps: bool = False, image_size: int | None = None
) -> None:
    """Show which method answers which hook in each stage, what trains, sampler and schedule. Reads no data.

    Example: ltcore plan recipes/digits_lt_ofa_focal.yaml --taps --image-size 8
    """
    from ltcore.recipe.loading import load_recipe

    loaded = load_recipe(recipe, sets)

    from ltcore.plan import make_plan
    from ltcore.plan_text import describe, describe_taps, render

    made = make_plan(loaded, to_run=False)
    described = describe(made)
    if taps or image_size:
        described["backbone"] |= describe_taps(made, image_size)
    _show(described, render, as_json)


def schema() -> None:
    """Print the JSON Schema of a recipe with the installed plugins, for editors.

    Example: ltcore schema > recipe.schema.json
    """
    from ltcore.schema import recipe_schema

    content, skipped = recipe_schema()
    for reason in skipped:
        print(f"left out: {reason}", file=sys.stderr)
    print(json.dumps(content, indent=2))


def plugins(as_json: bool = False, really_import: bool = False) -> None:
    """List the installed methods with their hooks, and those that cannot be imported. Nothing is imported.

    Example: ltcore plugins
    """
    from ltcore.plugin_list import plugin_rows, render_plugins

    _show(plugin_rows(really_import), render_plugins, as_json)


def show_plugin(name: str, as_json: bool = False, really_import: bool = False) -> None:
    """Show a method's options, hooks and needs.

    Example: ltcore plugins show ofa
    """
    from ltcore.plugin_list import plugin_card, render_card  # which imports the plugin, whether asked to or not

    _show(plugin_card(name), render_card, as_json)


def list_data(as_json: bool = False) -> None:
    """List the data sets that are installed.

    Example: ltcore data list
    """
    from ltcore.plugin_list import data_rows, render_data

    _show(data_rows(), render_data, as_json)


def describe_data(what: str, sets: Sequence[str] = (), png: Path | None = None, as_json: bool = False) -> None:
    """Show class counts, imbalance, shot groups and a histogram of a data set as a run would train on it.

    Example: ltcore data describe digits_lt --set data.imbalance.factor=10 --set data.imbalance.kind=exponential
    """
    from ltcore.data.describe import describe, render
    from ltcore.plugin_list import load_data

    found = describe(load_data(what, sets), what)
    if png is not None:
        from ltcore.data.histogram import save_histogram

        save_histogram(found, png)
    _show(found, render, as_json)


def _show(content: Any, render: Callable[[Any], str], as_json: bool) -> None:
    print(json.dumps(content, indent=2) if as_json else render(content))


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one message. What is not given takes the default of the function that is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            **settings,
        )
        self.flag("--debug", "show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see '{self.prog} --help'\n")

    def flag(self, name: str, text: str, into: str | None = None) -> None:
        """An option without a value."""
        self.add_argument(name, action="store_true", help=text, dest=into or name.strip("-"))

    def recipe(self) -> None:
        """The argument RECIPE and the option ``--set``."""
        self.add_argument("recipe", type=Path, metavar="RECIPE", help="a recipe file (YAML)")
        self.sets()

    def sets(self) -> None:
        """The option ``--set``."""
        text = "change a value, e.g. stages.finetune.epochs=4; may be repeated"
        self.add_argument("--set", action="append", dest="sets", metavar="PATH=VALUE", help=text)

    def json(self) -> None:
        """The option ``--json``."""
        self.flag("--json", "print JSON", "as_json")


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of minutes")
    return minutes


def _command(commands: Any, name: str, function: Callable[..., None]) -> _Parser:
    """A command's parser; what ``--help`` says is the function's docstring."""
    first, *rest = (function.__doc__ or "").strip().splitlines()
    parser: _Parser = commands.add_parser(
        name, help=first, description="\n".join([first, *(line.strip() for line in rest)])
    )
    parser.set_defaults(function=function)
    return parser


def _parser() -> _Parser:
    text = "Train image classifiers on long-tailed data.\n\nExample: ltcore run recipes/digits_lt_ofa_focal.yaml"
    parser = _Parser(prog="ltcore", description=text)
    parser.add_argument("--version", action="version", version=__version__, help="print the version and stop")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = _command(commands, "run", run)
    command.recipe()
    command.add_argument("--seed", type=int, help="the run's seed, in place of the recipe's")
    command.add_argument("--out", type=Path, metavar="DIR", help="where run directories are made; by default runs")
    command.flag("--resume", "go on with the latest run of this very recipe")
    text = "take over the first stages of a run that has ended, as many as are the same in both recipes"
    command.add_argument("--from", type=Path, dest="source", metavar="RUN", help=text)
    text = "train N steps a stage (by default 5) on noise instead; print memory and the time a run would take"
    command.add_argument("--rehearse", type=_whole, nargs="?", const=5, metavar="N", help=text)
    text = "for --rehearse: JSON list of the training images of each class, in place of those the data set states"
    command.add_argument("--counts", type=Path, metavar="FILE", help=text)
    command.json()
    command = _command(commands, "init", init)
    command.add_argument("folder", type=Path, metavar="DIR", help="the folder of your images")
    command.add_argument("--out", type=Path, metavar="RECIPE", help="the recipe to write; by default recipe.yaml")
    command.flag("--force", "write over a recipe that is there")
    command.add_argument("--weights", type=Path, metavar="FILE", help="start from this file of weights of --model")
    command.add_argument("--model", metavar="NAME", help="a network of timm; by default one that suits")
    command.flag("--pretrained", "start from timm's weights, which are fetched from its hub")
    text = "pixels of a side that images are brought to; by default what suits and fits the time"
    command.add_argument("--image-size", type=_whole, metavar="PIXELS", help=text)
    command.add_argument("--epochs", type=_whole, metavar="N", help="epochs of training; by default what fits the time")
    command.add_argument("--minutes", type=_minutes, metavar="M", help="how long a run may take; by default 30")
    command = _command(commands, "plan", plan)
    command.recipe()
    command.flag("--taps", "the backbone's taps with the shape of a row, and whether it is a map or tokens")
    text = "pixels of a side, for --taps; by default the data's option image_size, or 32"
    command.add_argument("--image-size", type=_whole, metavar="PIXELS", help=text)
    command.json()
    _command(commands, "schema", schema)

    command = _command(commands, "plugins", plugins)
    command.json()
    command.flag("--import", "import each one in another process, instead of reading its source", "really_import")
    nested = command.add_subparsers(title="commands", metavar="COMMAND")
    command = _command(nested, "show", show_plugin)
    command.add_argument("name", metavar="NAME", help="a method's name")
    command.json()

    text = "List the data sets, or describe one."
    group = commands.add_parser("data", help=text, description=f"{text}\n\nExample: ltcore data describe digits_lt")
    nested = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _command(nested, "list", list_data).json()
    command = _command(nested, "describe", describe_data)
    command.add_argument("what", metavar="DATA", help="a data set's name, or a recipe file")
    command.add_argument("--png", metavar="FILE", type=Path, help="also draw the class counts into a PNG file")
    command.sets()
    command.json()
    return parser


def main() -> None:
    """Run the command line: messages instead of tracebacks, and exit codes that say whose mistake it was."""
    # Read by PyTorch when it starts: batches of images on huge pages cost a third of the time to fill on the CPU.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    parser = _parser()
    if len(sys.argv) == 1:
        parser.print_help()
        return
    arguments = vars(parser.parse_args())
    debug, function = arguments.pop("debug", False), arguments.pop("function")
    try:
        function(**arguments)
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
