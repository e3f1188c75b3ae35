"""``ltcore report``: one page on one run or several, with everything in it, and its figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltcore.files.output import refuse_output, write_output
from ltcore.report.blocks import Shown
from ltcore.report.data import read_run
from ltcore.report.figures import figure_places, prepare_folder, write_figures
from ltcore.report.material import Choices, gather
from ltcore.report.page import build, compose, figures_of


def write_report(
    runs: Sequence[Path],
    out: Path,
    features: bool = True,
    images: bool = True,
    run_code: bool = False,
    analysis: bool = False,
    classes: Sequence[str] = (),
    figures: Path | None = None,
) -> list[str]:
    """Write the page.

    Args:
        runs: directories of runs; the order is that of the colours.
        out: the file, replaced where it exists; or a pipe.
        features: whether to map features by t-SNE, for which the model is rebuilt and the data read.
        images: whether to show example images, for which the data is read.
        run_code: see `ltcore.load`.
        analysis: whether to let all images go through the models of each stage once more, for decision values,
            confusion before and after stages, nearest class means, and what methods show.
        classes: names or numbers of the classes that are drawn one by one; by default all, or some.
        figures: a folder, made where it is missing, that gets every figure as an SVG and a PDF file; None for none.

    Returns:
        What had to be left out and why, a sentence each.

    Raises:
        RecipeError: a directory holds no run, or nothing to show yet, or has no such class; or `out` is no file; or
            a figure's place is taken by a file that is not ours.
        RunError: a file of a run is damaged, or the page cannot be written.
    """
    refuse_output(out, "-o")
    if figures is not None:
        prepare_folder(figures)
    found = [read_run(path, run_code) for path in runs]
    choices = Choices(features, images, analysis, tuple(classes), run_code)
    shown = [Shown(n, run, gather(run, choices), len(found) == 1) for n, run in enumerate(found)]
    sections = compose(shown)
    places = {} if figures is None else figure_places(figures, figures_of(sections))
    write_output(out, build(shown, sections), "-o")
    write_figures(places)
    return [note for one in shown for note in one.found.notes]
