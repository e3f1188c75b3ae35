"""Matrices of classes: one picture of coloured cells, so that hundreds of classes are as good as ten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from ltcore.report.chart import SMALL
from ltcore.report.labels import shortened
from ltcore.untrusted import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WRITTEN = 12  # up to so many classes, a cell has its number written in it
_NAMES, _LETTERS = 20, 16  # how many names there is room for along a side, and letters of each
_PIXELS = 480  # of a side of the picture, about: several for each cell, so that no program blurs the edges of few cells
#: Light to dark, and for changes, orange over white to blue: both told apart without seeing red from green.
_RISING = ("#f7fbff", "#9ecae1", "#3182bd", "#08306b")
_CHANGING = ("#7f3b08", "#e08214", "#fdb863", "#f7f7f7", "#92b2de", "#3168b5", "#082663")
_NOTHING = "#b0b0b0"
_DARK_TEXT, _LIGHT_TEXT = "#1a1a1a", "#ffffff"  # the same in a dark page, where the cells are the same


@dataclass(frozen=True)
class Matrix:
    """A square matrix of classes with its words."""

    kind: ClassVar[str] = "picture"
    titles: ClassVar[list[Sequence[str]]] = []  # no cell says anything of its own
    title: str  # what it shows, in a few words
    text: str  # what there is to see, for those who cannot
    values: NDArray[np.float64]  # [C, C], a row a true class; NaN where there is nothing
    names: Sequence[str]  # of the classes, in the order of rows and columns
    low: float = 0  # has the lightest colour, or of changes the deepest orange
    high: float = 1  # has the darkest colour
    columns: str = "taken for"  # what a column is
    changes: bool = False  # whether values are changes, around 0
    percent: bool = True  # whether values are fractions that are written in percent

    def paint(self, figure: Figure) -> None:
        """Draw it; the figure's width stays."""
        from matplotlib.colors import LinearSegmentedColormap

        size = len(self.names)
        figure.set_figheight(0.94 * figure.get_figwidth())
        axes = figure.add_subplot()
        anchors = _CHANGING if self.changes else _RISING
        palette = LinearSegmentedColormap.from_list("", anchors).with_extremes(bad=_NOTHING)
        times = max(1, _PIXELS // max(size, 1))
        seen = self.values.repeat(times, 0).repeat(times, 1)
        edges = (-0.5, size - 0.5, size - 0.5, -0.5)
        image = axes.imshow(seen, palette, vmin=self.low, vmax=self.high, extent=edges, interpolation="none")
        places = range(0, size, max(1, math.ceil(size / _NAMES)))
        names = shortened([printable(name) for name in self.names], _LETTERS)[:: places.step]
        axes.set_yticks(places, names)
        axes.set_xticks(places, names, rotation=90)
        axes.tick_params(length=0, labelsize=SMALL)
        axes.set(xlabel=self.columns, ylabel="class")
        if size <= _WRITTEN:
            share = (self.values - self.low) / max(self.high - self.low, 1e-12)
            dark = np.abs(share - 0.5) > 0.3 if self.changes else share > 0.55
            for (row, column), value in np.ndenumerate(self.values):
                color = _LIGHT_TEXT if dark[row, column] else _DARK_TEXT
                axes.text(column, row, self.write(float(value)), color=color, ha="center", va="center", size=SMALL)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.02)
        ends = [self.low, 0.0, self.high] if self.changes else [self.low, self.high]
        bar.set_ticks(ends, labels=[f"{self.write(value) or '0'}{' %' if self.percent else ''}" for value in ends])
        figure.draw_without_rendering()
        figure.set_figheight(figure.get_tightbbox().height + 0.05)  # no room above and below the square

    def write(self, value: float) -> str:
        """A value as it is written."""
        if np.isnan(value) or (self.percent and value == 0):  # most cells of a confusion matrix
            return ""
        sign = "+" if self.changes else ""
        if not self.percent:
            return f"{value:{sign}.1f}" if abs(value) < 100 else f"{value:{sign}.0f}"
        return "0" if round(100 * value) == 0 else f"{100 * value:{sign}.0f}"
