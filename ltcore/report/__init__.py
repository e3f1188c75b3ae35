"""``ltcore report``: one page on one run or several, with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltcore.checkpoint import write_atomically
from ltcore.errors import RunError
from ltcore.report.data import read_run
from ltcore.report.page import build


def write_report(runs: Sequence[Path], out: Path) -> list[str]:
    """Write the page.

    Args:
        runs: directories of runs; the order is that of the colours.
        out: the file, replaced where it exists.

    Returns:
        What the user should be told.

    Raises:
        RunError: a run cannot be shown, or the file not be written.
    """
    found = [read_run(path) for path in runs]
    page = build(found, [])
    try:
        write_atomically(out, page.encode())
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error}); choose another file with -o") from error
    return []
