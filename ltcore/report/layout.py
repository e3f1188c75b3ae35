"""What the sections of a report share: panels for each run, names of runs, and how figures are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ltcore.contract.figures import FIGURES, SHOT_GROUPS
from ltcore.contract.result import Figures
from ltcore.report.blocks import Cell, Folded, Heading, Panel, Panels, Part, Table
from ltcore.report.chart import Axis
from ltcore.report.data import ReportedRun

Runs = Sequence[ReportedRun]

#: What heads the columns of `figure_cells`.
FIGURE_HEADS = tuple(figure.short for figure in FIGURES.values())
MISSING = "–"  # noqa: RUF001 (a dash where a figure is missing)


def each_run(runs: Runs, draw: Callable[[int, ReportedRun], Sequence[Part]]) -> Sequence[Part]:
    """What is drawn of every run; of several, side by side with the run's name above."""
    if len(runs) == 1:
        return draw(0, runs[0])
    made = [
        Panel([Heading(run_name(runs, index), key=index), *draw(index, run)], _letter(index))
        for index, run in enumerate(runs)
    ]
    return [Panels(made, narrow=len(made) > 2)]


def beside(runs: Runs, parts: Sequence[Part]) -> Sequence[Part]:
    """Parts of one run side by side; of one of several runs, whose panels are beside each other, in a column."""
    return [Panels(parts)] if len(runs) == 1 else parts


def run_name(runs: Runs, index: int) -> str:
    """A name by which the page tells a run from the others."""
    run = runs[index]
    seed = "" if run.seed is None else f", seed {run.seed}"
    return f"{_letter(index)} {run.name}{seed}" if len(runs) > 1 else f"{run.name}{seed}"


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"run {index + 1}"


def percent(value: float | None) -> str:
    """A fraction in percent with one decimal."""
    return MISSING if value is None else f"{100 * value:.1f}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits."""
    return MISSING if value is None or math.isnan(value) else f"{value:.{digits}g}"


def cell(value: float | None, path: str, write: Callable[[float | None], str] = percent) -> Cell:
    """A table's cell with a figure of ``result.json``.

    Args:
        value: the figure.
        path: the run's number in the page and the figure's place in its ``result.json``, with slashes.
        write: how it is written.
    """
    return Cell(write(value), "number", path)


def numeric(text: str) -> Cell:
    """A table's cell with another number."""
    return Cell(text, "number")


def figure_cells(figures: Figures, path: str) -> list[Cell]:
    """A row's cells below `FIGURE_HEADS`."""
    return [cell(figures.get(name), f"{path}/{name}") for name in FIGURES]


def folded(summary: str, head: Sequence[str], rows: Sequence[Sequence[str | Cell]], caption: str) -> Folded:
    """A table that is folded away."""
    return Folded(summary, [Table(head, rows, caption)])


def count_axis(runs: Runs) -> Axis:
    """Training images of a class, on a logarithmic scale with some room on both sides."""
    counts = [count for run in runs for count in run.counts]
    return Axis("training images of the class", min(counts) / 1.25, max(counts) * 1.25, log=True)


def group_dividers(axis: Axis) -> list[tuple[float, str]]:
    """Where the shot groups but the rarest begin on an axis of training images, each with its name."""
    edges = [(group.fewest - 0.5, group.name) for group in reversed(SHOT_GROUPS) if group.fewest]
    return [(edge, name) for edge, name in edges if axis.low < edge < axis.high]


def accuracy_axis(title: str = "accuracy, percent") -> Axis:
    """From 0 to 100 percent."""
    return Axis(title, 0, 1, percent=True)


def epoch_axis(epochs: Sequence[float]) -> Axis:
    """Around some epochs."""
    return Axis("epoch, counted through all stages", min(epochs) - 1, max(epochs) + 1, whole=True)


def upward_axis(title: str, values: Sequence[float]) -> Axis:
    """From 0, or the smallest of some values where that is less, to a little more than the largest."""
    return Axis(title, min([*values, 0]), 1.05 * max([*values, 1e-9]))


def ended(runs: Runs) -> list[tuple[int, ReportedRun]]:
    """The runs that have ended, with their numbers in the page."""
    return [(index, run) for index, run in enumerate(runs) if run.result]
