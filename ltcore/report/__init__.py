"""``ltcore report``: one page on one run or several, with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltcore.errors import RecipeError, RunError
from ltcore.files.checkpoint import write_atomically
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
        RecipeError: a directory holds no run, or nothing to show yet, or the file is in no folder.
        RunError: a file of a run is damaged, or the page cannot be written.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise RecipeError(
            f"{out} cannot be written: {'it' if out.is_dir() else out.parent} is "
            f"{'a' if out.is_dir() else 'no'} folder; name another file with -o"
        )
    found = [read_run(path) for path in runs]
    materials = [gather(run, features, images) for run in found]
    page = build(found, materials)
    try:
        write_atomically(out, page.encode())
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error}); choose another file with -o") from error
    return [note for material in materials for note in material.notes]
