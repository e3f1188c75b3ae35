"""``ltcore report``: one page on one run or several, with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltcore.checkpoint import write_atomically
from ltcore.errors import RunError
from ltcore.report.data import read_run
from ltcore.report.material import gather
from ltcore.report.page import build


def write_report(runs: Sequence[Path], out: Path, features: bool = True, images: bool = True) -> list[str]:
    """Write the page.

    Args:
        runs: directories of runs; the order is that of the colours.
        out: the file, replaced where it exists.
        features: whether to map features by t-SNE, for which the model is rebuilt and the data read.
        images: whether to show example images, for which the data is read.

    Returns:
        What had to be left out and why, a sentence each.

    Raises:
        RunError: a run cannot be shown, or the file not be written.
    """
    found = [read_run(path) for path in runs]
    materials = [gather(run, features, images) for run in found]
    page = build(found, materials)
    try:
        write_atomically(out, page.encode())
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error}); choose another file with -o") from error
    return [note for material in materials for note in material.notes]
