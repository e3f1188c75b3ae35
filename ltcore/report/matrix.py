"""Matrices of classes: one picture of coloured cells, so that hundreds of classes are as good as ten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from ltcore.report.labels import shortened
from ltcore.untrusted import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Up to so many classes, a cell has its number written in it.
_WRITTEN = 12
#: How many names there is room for along a side.
_NAMES = 26
_NAME_LETTERS = 16
#: Pixels of a side of the picture, about: several for each cell, so that no program blurs the edges of few cells.
_PIXELS = 480
#: Light to dark, and for changes, orange over white to blue: both told apart without seeing red from green.
_RISING = ("#f7fbff", "#9ecae1", "#3182bd", "#08306b")
_CHANGING = ("#7f3b08", "#e08214", "#fdb863", "#f7f7f7", "#92b2de", "#3168b5", "#082663")
_NOTHING = "#b0b0b0"
_DARK_TEXT, _LIGHT_TEXT = "#1a1a1a", "#ffffff"  # the same in a dark page, where the cells are the same


@dataclass(frozen=True)
class Matrix:
    """A square matrix of classes with its words.

    Attributes:
        title: what it shows, in a few words.
        text: what there is to see, for those who cannot.
        values: [C, C], a row a true class; NaN where there is nothing.
        names: of the classes, in the order of rows and columns.
        low: the value that has the lightest colour, or of changes the deepest orange.
        high: the value that has the darkest colour.
        columns: what a column is.
        changes: whether values are changes, around 0.
        percent: whether values are fractions that are shown in percent.
    """

    title: str
    text: str
    values: NDArray[np.float64]
    names: Sequence[str]
    low: float
    high: float
    columns: str = "taken for"
    changes: bool = False
    percent: bool = True

    #: No cell says anything of its own.
    titles: ClassVar[list[Sequence[str]]] = []

    def paint(self, figure: Figure) -> None:
        """Draw it."""
        from matplotlib.colors import LinearSegmentedColormap

        size = len(self.names)
        figure.set_figheight(0.94 * figure.get_figwidth())
        axes = figure.add_subplot()
        anchors = _CHANGING if self.changes else _RISING
        palette = LinearSegmentedColormap.from_list("", anchors).with_extremes(bad=_NOTHING)
        times = max(1, _PIXELS // max(size, 1))
        seen = self.values.repeat(times, 0).repeat(times, 1)
        edges = (-0.5, size - 0.5, size - 0.5, -0.5)
        image = axes.imshow(
            seen, cmap=palette, vmin=self.low, vmax=self.high, extent=edges, aspect="equal", interpolation="none"
        )
        places = range(0, size, max(1, math.ceil(size / _NAMES)))
        short = shortened([printable(name) for name in self.names], _NAME_LETTERS)
        names = [short[place] for place in places]
        axes.set_yticks(places, names)
        axes.set_xticks(places, names, rotation=90)
        axes.tick_params(length=0, labelsize="small")
        axes.set(xlabel=self.columns, ylabel="class")
        if size <= _WRITTEN:
            share = (self.values - self.low) / max(self.high - self.low, 1e-12)
            dark = np.abs(share - 0.5) > 0.3 if self.changes else share > 0.55
            for (row, column), value in np.ndenumerate(self.values):
                color = _LIGHT_TEXT if dark[row, column] else _DARK_TEXT
                axes.text(column, row, self.write(float(value)), color=color, ha="center", va="center", size="small")
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
