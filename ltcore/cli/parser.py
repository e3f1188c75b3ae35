"""What the commands' parsers share: mistakes that are one message, common options, and how a command is added."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ltcore.errors import nearest
from ltcore.untrusted import printable


class Parser(argparse.ArgumentParser):
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

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """The arguments by name; of a word that a command does not know, the command speaks, not the whole."""
        found, unknown = self.parse_known_args(words)
        arguments = vars(found)
        command: Parser = arguments.pop("command")
        if unknown:
            near = nearest(unknown[0].partition("=")[0], command._option_string_actions)
            command.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return arguments

    def flag(self, name: str, text: str, into: str | None = None) -> None:
        """An option without a value."""
        self.add_argument(name, action="store_true", help=text, dest=into or name.strip("-"))

    def recipe(self, required: bool = True) -> None:
        """The argument RECIPE and the option ``--set``."""
        text = "a recipe file (YAML)"
        if required:
            self.add_argument("recipe", type=Path, metavar="RECIPE", help=text)
        else:  # with a default of its own: argparse takes a suppressed one for a value here
            self.add_argument("recipe", type=Path, metavar="RECIPE", help=text, nargs="?", default=None)
        self.sets()

    def sets(self) -> None:
        """The option ``--set``."""
        text = "change a value, e.g. stages.finetune.epochs=4; may be repeated"
        self.add_argument("--set", action="append", dest="sets", metavar="PATH=VALUE", help=text)

    def seed(self) -> None:
        """The option ``--seed``."""
        self.add_argument("--seed", type=int, help="the run's seed, in place of the recipe's")

    def ended_run(self) -> None:
        """The argument RUN."""
        text = "a run that has ended: its directory, a recipe's name, or latest"
        self.add_argument("run", type=run_named, metavar="RUN", help=text)

    def run_code(self) -> None:
        """The option ``--run-code``."""
        self.flag("--run-code", "run the code that the run keeps, where its recipe named a file", "run_code")

    def json(self) -> None:
        """The option ``--json``."""
        self.flag("--json", "print JSON", "as_json")


def add_command(commands: Any, name: str, function: Callable[..., object]) -> Parser:
    """A command's parser; what ``--help`` says is the function's docstring."""
    first, *rest = (function.__doc__ or "").strip().splitlines()
    parser: Parser = commands.add_parser(
        name, help=first, description="\n".join([first, *(line.strip() for line in rest)])
    )
    parser.set_defaults(function=function, command=parser)
    return parser


def show(content: Any, render: Callable[[Any], str], as_json: bool) -> None:
    """Print a command's findings, as text or as JSON."""
    if as_json:
        import json

        print(json.dumps(content, indent=2))
    else:
        from ltcore.progress.wrapping import for_terminal

        print(for_terminal("\n".join(printable(line) for line in render(content).split("\n")), sys.stdout))


def show_page(text: str) -> None:
    """Print a text with its lines as they are."""
    print("\n".join(printable(line) for line in text.rstrip("\n").split("\n")))


def run_named(text: str) -> Path:
    """The directory of a run that an argument names.

    If a run or a file is at the path itself, it is taken. Else ``latest``, or a recipe's name, stands for the run in
    ``runs`` that was begun last. Runs that have ended come first. A folder without a run, as of images, does not count
    as a run.
    """
    path = Path(text)
    if (path / "job.json").is_file():  # a sweep's job, whose run lies below
        return max(path.glob("runs/*/[!.]*/recipe.yaml"), key=_when, default=path / "recipe.yaml").parent
    if _is_there(path) or path.name != text:
        return path
    found = list(Path("runs").glob(f"{'*' if text == 'latest' else glob.escape(text)}/[!.]*/recipe.yaml"))
    ended = [each for each in found if each.with_name("result.json").exists()]
    if not found:
        return path
    chosen = max(ended or found, key=_when).parent
    print(f"{text}: {printable(chosen)}", file=sys.stderr)
    return chosen


def runs_named(text: str) -> Path:
    """Runs, from an argument's text: as `run_named`, but a recipe's name stands for all of its runs in ``runs``."""
    folder = Path("runs", text)
    return folder if text != "latest" and not _is_there(Path(text)) and folder.is_dir() else run_named(text)


def _when(path: Path) -> int:
    return path.stat().st_mtime_ns


def _is_there(path: Path) -> bool:
    """Whether a path is a file, or a folder with a run in it or below."""
    return path.is_file() or any(next(path.glob(f"{depth}recipe.yaml"), None) for depth in ("", "*/", "*/*/"))


def whole(text: str) -> int:
    """A whole number above 0, from an argument's text."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def number_of(unit: str) -> Callable[[str], float]:
    """Reads a number of a unit, such as minutes, above 0 and finite, from an argument's text."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise argparse.ArgumentTypeError(f"'{text}' is no number of {unit}")
        return number

    return read
