"""The command line. What a command needs is imported inside it: ``ltcore --help`` and ``ltcore plugins`` stay light.

It is argparse because that starts in 10 ms. typer and cyclopts would read the type hints for us, but what they import
(pydantic, rich) takes longer than all of ``ltcore plugins``.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

from ltcore import ranks
from ltcore.cli import bench, data, pages, plugins, publish, recipes, rehearsal, results, sweeps, tables, training, use
from ltcore.cli.parser import Parser
from ltcore.contract.interface import __version__
from ltcore.discovery import unpackaged
from ltcore.errors import LtcoreError, RecipeError
from ltcore.training.threads import prepare_openmp
from ltcore.untrusted import printable


def command_line() -> Parser:
    """The parser of all commands."""
    text = "Train image classifiers on long-tailed data.\n\nExample: ltcore run recipes/digits_lt_ofa_focal.yaml"
    parser = Parser(prog="ltcore", description=text)
    parser.add_argument("--version", action="version", version=__version__, help="print the version and stop")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # The order in which --help lists them: from a recipe to a model in use, then what is installed, then for authors.
    for part in (recipes, rehearsal, bench, training, sweeps, tables, results, use, data, plugins, pages, publish):
        part.add(commands)
    return parser


def main() -> None:
    """Run the command line: messages instead of tracebacks, and exit codes that say whose mistake it was."""
    _speak_plainly()
    if os.environ.get("WORLD_SIZE", "1") != "1":  # PyTorch warns of what nobody can change
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    prepare_openmp()
    unpackaged.told[:] = [lambda path: _complain(f"running {path}, which is not installed but named as a file")]
    debug, function = False, None
    try:
        try:
            arguments = command_line().parse(sys.argv[1:] or ["--help"])
        except SystemExit:  # --help and --version have printed something, too
            sys.stdout.flush()
            raise
        debug, function = arguments.pop("debug", False), arguments.pop("function")
        if ranks.started().size > 1 and function is not training.run:
            raise RecipeError("several processes train together with torchrun -m ltcore run, and do nothing else")
        function(**arguments)
        sys.stdout.flush()
    except LtcoreError as error:
        if debug:
            import traceback

            traceback.print_exc()
        elif ranks.speaks("\n".join(error.lines)):
            for line in error.lines or (type(error).__name__,):
                _complain(line)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as stop:  # by a key, or in a run by a signal
        text = str(stop) or "stopped"
        if ranks.speaks(text):
            _complain(text)
        sys.exit(getattr(stop, "exit_code", 130))
    except BrokenPipeError:
        if function in (training.run, training.train, sweeps.sweep, tables.table):
            _complain("stopped: what read the output has ended; repeat the command to go on, a run with --resume")
        _say_no_more()
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        from ltcore.cli.surroundings import said

        known = said(error)
        if isinstance(error, OSError) and error.filename is None and _say_no_more():
            known = f"standard output: {known}"
        _complain(
            f"ltcore stopped: {known}"
            if known
            else f"ltcore failed: {type(error).__name__}: {error}. Run with --debug for the traceback, and please "
            "report it"
        )
        sys.exit(1)


def _complain(line: object) -> None:
    """One line on standard error; that nobody reads it, or that it has no room, is no second error."""
    with suppress(OSError):
        print(printable(line), file=sys.stderr)


def _say_no_more() -> bool:
    """Whether standard output takes no more; then the rest goes nowhere: Python would complain at its end."""
    try:
        print(flush=True)  # as what it has refused is thrown away, and a second flush has nothing to do
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _speak_plainly() -> None:
    """What is printed is UTF-8 whatever the locale; a terminal keeps its encoding, and no character ends a command."""
    # Where the caller has closed them (``>&-``) there is none.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=stream.encoding if stream.isatty() else "utf-8", errors="backslashreplace")
