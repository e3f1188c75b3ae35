"""``ltcore report``: one page on one run or several, with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltcore.files.output import refuse_output, write_output
from ltcore.report.data import read_run
from ltcore.report.material import gather
from ltcore.report.page import build


def write_report(
    runs: Sequence[Path], out: Path, features: bool = True, images: bool = True, run_code: bool = False
) -> list[str]:
    """Write the page.

    Args:
        runs: directories of runs; the order is that of the colours.
        out: the file, replaced where it exists; or a pipe.
        features: whether to map features by t-SNE, for which the model is rebuilt and the data read.
        images: whether to show example images, for which the data is read.
        run_code: see `ltcore.load`.

    Returns:
        What had to be left out and why, a sentence each.

    Raises:
        RecipeError: a directory holds no run, or nothing to show yet, or `out` is no file.
        RunError: a file of a run is damaged, or the page cannot be written.
    """
    refuse_output(out, "-o")
    found = [read_run(path, run_code) for path in runs]
    materials = [gather(run, features, images, run_code) for run in found]
    write_output(out, build(found, materials), "-o")
    return [note for material in materials for note in material.notes]
