"""A program that stands for another pipeline; it measures a part each time it is asked, as ours takes its turn.

It is started once, with what it is to be like as options and ``-`` as its part, and reads the name of a part from each
line of its standard input: ``input``, ``run`` or ``classifier``. To each it answers with one line of JSON, an object of
positive numbers beside ``part``; which, `ANSWERS` says. ``benchmarks/reference.py`` is such a program.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ltcore.errors import RecipeError
from ltcore.untrusted import parse_json, printable

#: What an answer must hold.
ANSWERS = {
    "input": ("images_per_second",),
    "run": ("step_seconds", "evaluation_images_per_second", "epoch_seconds"),
    "classifier": ("step_seconds", "evaluation_images_per_second", "epoch_seconds"),
}
_SHOWN = 200


class Beside:
    """The program, running; as a context manager it ends with the block.

    Args:
        program: its file; one that ends in ``.py`` is run by this Python.
        words: its options.

    Raises:
        RecipeError: it cannot be started.
    """

    def __init__(self, program: Path, words: Sequence[str]) -> None:
        self._program = program
        if not program.is_file():
            raise RecipeError(f"--compare {program}: there is no such file; name a program as docs/performance.md says")
        python = [sys.executable] if program.suffix == ".py" else []
        try:
            self._process = subprocess.Popen(
                [*python, str(program.resolve()), "-", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise RecipeError(f"--compare {program}: it cannot be started: {error}") from error

    def ask(self, part: str) -> dict[str, float]:
        """Let it measure a part.

        Raises:
            RecipeError: it has ended, or answers with something else.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        with suppress(OSError):
            self._process.stdin.write(f"{part}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RecipeError(
                f"--compare {self._program}: it ended with exit code {self._process.wait()} and gave no figures for "
                f"'{part}'; its own message stands above, if it had one"
            )
        try:
            found = parse_json(line)
            figures = {name: float(found[name]) for name in ANSWERS[part]}
            if not all(0 < figure < float("inf") for figure in figures.values()):
                raise ValueError("its figures are not all above 0")
        except (ValueError, TypeError, LookupError) as error:
            raise RecipeError(
                f"--compare {self._program}: asked for '{part}' it printed {printable(line.strip())[:_SHOWN]!r} in "
                f"place of a line of JSON with {', '.join(ANSWERS[part])} ({type(error).__name__}: {error})"
            ) from error
        return figures

    def __enter__(self) -> Self:
        """It has been started already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it: it reads no more lines."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10 if kind is None else 0.1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
