"""What the sections of a report share: their frame, panels side by side, names of runs, and how figures are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from xml.etree.ElementTree import Element

from ltcore.contract.figures import FIGURES, SHOT_GROUPS
from ltcore.contract.result import Figures
from ltcore.report.chart import Axis, Series, swatch
from ltcore.report.data import ReportedRun
from ltcore.report.markup import Content, element

Runs = Sequence[ReportedRun]

#: What heads the columns of `figure_cells`.
FIGURE_HEADS = tuple(figure.short for figure in FIGURES.values())
MISSING = "–"  # noqa: RUF001 (a dash where a figure is missing)


def section(identity: str, title: str, text: str, *content: Content) -> Element:
    """A section of the page with a heading and a sentence on what it shows."""
    heading = element("h2", title, id=f"{identity}-title")
    return element("section", heading, element("p", text), *content, id=identity, aria_labelledby=f"{identity}-title")


def panels(*content: Element | None, narrow: bool = False) -> Element:
    """Elements side by side where there is room, two or, if `narrow`, three in a row."""
    return element("div", *content, class_="panels narrow" if narrow else "panels")


def each_run(runs: Runs, draw: Callable[[int, ReportedRun], Sequence[Content]]) -> Element:
    """A panel for every run, with the run's name above it where there are several."""
    made = []
    for index, run in enumerate(runs):
        heading = element("h3", key(index), run_name(runs, index)) if len(runs) > 1 else None
        panel = element("div", heading, *draw(index, run))
        for figure in panel.iter("figure") if len(runs) > 1 else ():
            figure.set("data-of", _letter(index))  # for the name of the figure's file
        made.append(panel)
    return made[0] if len(made) == 1 else panels(*made, narrow=len(made) > 2)


def run_name(runs: Runs, index: int) -> str:
    """A name by which the page tells a run from the others."""
    run = runs[index]
    seed = "" if run.seed is None else f", seed {run.seed}"
    return f"{_letter(index)} {run.name}{seed}" if len(runs) > 1 else f"{run.name}{seed}"


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"run {index + 1}"


def key(index: int) -> Element:
    """The line and marker of a run in all charts."""
    return swatch(Series("", [], index, line=True, dash=index))


def percent(value: float | None) -> str:
    """A fraction in percent with one decimal."""
    return MISSING if value is None else f"{100 * value:.1f}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits."""
    return MISSING if value is None or math.isnan(value) else f"{value:.{digits}g}"


def cell(value: float | None, path: str, write: Callable[[float | None], str] = percent) -> Element:
    """A table's cell with a figure of ``result.json``.

    Args:
        value: the figure.
        path: the run's number in the page and the figure's place in its ``result.json``, with slashes.
        write: how it is written.
    """
    return element("td", write(value), class_="number", data_figure=path)


def figure_cells(figures: Figures, path: str) -> list[Element]:
    """A row's cells below `FIGURE_HEADS`."""
    return [cell(figures.get(name), f"{path}/{name}") for name in FIGURES]


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


def upward_axis(title: str, values: Sequence[float]) -> Axis:
    """From 0, or the smallest of some values where that is less, to a little more than the largest."""
    return Axis(title, min([*values, 0]), 1.05 * max([*values, 1e-9]))


def shorten(text: str, letters: int) -> str:
    """A text of no more than so many letters."""
    return text if len(text) <= letters else text[: letters - 1] + "…"


def ended(runs: Runs) -> list[tuple[int, ReportedRun]]:
    """The runs that have ended, with their numbers in the page."""
    return [(index, run) for index, run in enumerate(runs) if run.result]
