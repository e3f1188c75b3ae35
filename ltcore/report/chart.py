"""Charts: axes, points and lines, drawn by matplotlib. What a colour says, a marker or a dash says as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ltcore.report.labels import clip
from ltcore.untrusted import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import BboxBase

#: Colours on light paper: four of Okabe and Ito's and four more that colour-blind readers tell apart; dark ones are in
#: style.css. No colour is plain black or white, which matplotlib leaves out of an SVG.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#010101", "#8800ff", "#663311", "#ee0055")
INK, QUIET, LINE, PAPER = "#1b1f24", "#57606a", "#d0d7de", "#fefefe"
#: Markers of series, in the order of the colours.
MARKERS = ("o", "s", "^", "D", "x", "+", "v", "*")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.7)), (0, (1.2, 1.4)), (0, (5, 1.7, 1.2, 1.7)))
Points = Sequence[tuple[float, float]]

_CROWDED = 60  # points of a series, or half of those of all, with which all markers are smaller
_MARKER, _SMALL, _TINY = 3.8, 0.65, 0.45  # points across, and how much smaller markers can be
_LETTER = 0.56  # width of a letter on average, of its height
_LEGEND_LETTERS = 40
SMALL = 6.5  # points, of the smallest letters: on a phone, 8 pixels


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, which are above 0 where it is logarithmic."""

    title: str  # what it measures, with its unit; empty for a map, whose places mean nothing
    low: float
    high: float
    log: bool = False
    percent: bool = False  # whether fractions are written in percent
    whole: bool = False  # whether only whole numbers are written
    named: tuple[str, ...] | None = None  # what is written at 0, 1, 2, ... in place of numbers

    def set_up(self, axes: Axes, name: str) -> None:
        """Make it the axis ``x`` or ``y``."""
        from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

        scale = "log" if self.log else "linear"
        axes.set(**{f"{name}scale": scale, f"{name}lim": (self.low, self.high), f"{name}label": self.title})
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_minor_locator(NullLocator())
        if self.named is not None:
            axis.set_ticks(range(len(self.named)), [printable(text) for text in self.named])
            return
        if self.log:
            decades = math.log10(self.high / self.low)
            subs = (1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 1 else range(1, 10)
            axis.set_major_locator(LogLocator(subs=subs, numticks=20))
        else:
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=self.whole))
        axis.set_major_formatter(lambda value, _: _written(100 * value if self.percent else value))


def _written(value: float) -> str:
    """A tick's number: ``2,000``, ``0.05``, ``5e-4``."""
    if 0 < value < 0.01:
        digits, exponent = f"{value:.0e}".split("e")
        return f"{digits}e{int(exponent)}"
    return f"{value:,.7g}"


@dataclass(frozen=True)
class Series:
    """Points of one kind."""

    name: str  # for the legend
    points: Points
    style: int  # number of its colour, and of its marker where `shape` is None
    titles: Sequence[str] = ()  # what each point says when it is pointed at; empty for nothing
    line: bool = False  # whether the points are joined
    marks: bool = True  # whether they are marked
    dash: int = 0  # number of the line's dash
    hollow: bool = False  # whether markers are outlined only
    faint: bool = False  # whether they are half transparent
    tiny: bool = False  # whether they are half as large
    shape: int | None = None
    trend: Points = ()  # more points, joined by a line without markers

    def draw(self, axes: Axes, crowded: bool, number: int) -> None:
        """Draw it; its markers are in the group ``points<number>`` of an SVG."""
        columns = np.array(self.points, dtype=float).reshape(-1, 2).T
        if self.line:
            axes.plot(*columns, **self._lined())
        if self.marks:
            axes.plot(*columns, ls="none", gid=f"points{number}", clip_on=False, zorder=3, **self._marked(crowded))
        if self.trend:  # above the points, which would hide it
            axes.plot(*zip(*self.trend, strict=True), zorder=4, **self._lined())

    def handle(self) -> Any:
        """A line for the legend."""
        from matplotlib.lines import Line2D

        line = self._lined() if self.line or self.trend else {"ls": "none"}
        return Line2D([], [], **line, **(replace(self, tiny=False)._marked(False) if self.marks else {}))

    def _marked(self, crowded: bool) -> dict[str, Any]:
        color = COLORS[self.style % len(COLORS)]
        return {
            "marker": MARKERS[(self.style if self.shape is None else self.shape) % len(MARKERS)],
            "markersize": _MARKER * (_TINY if self.tiny else _SMALL if crowded else 1),
            "markeredgecolor": color,
            "markerfacecolor": "none" if self.hollow else color,
            "markeredgewidth": 0.8,
            "alpha": 0.45 if self.faint else None,
        }

    def _lined(self) -> dict[str, Any]:
        width = 1.6 if self.trend else 1.1
        return {"color": COLORS[self.style % len(COLORS)], "linestyle": DASHES[self.dash % len(DASHES)], "lw": width}


@dataclass(frozen=True)
class Regions:
    """What fills the plot behind the points."""

    cells: NDArray[np.int64]  # [rows, columns] labels, the upper row first
    styles: dict[int, int]  # for each label the number of its colour; other labels are grey

    def draw(self, axes: Axes) -> None:
        """Fill the plot with pale colours, with lines where labels change."""
        from matplotlib.colors import to_rgb

        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        down, across = self.cells.shape
        labels, places = np.unique(self.cells, return_inverse=True)
        colors = np.array([to_rgb(COLORS[self.styles[n]] if n in self.styles else QUIET) for n in labels.tolist()])
        pale = 1 - 0.18 * (1 - colors[places.reshape(down, across)])
        axes.imshow(pale, extent=(left, right, low, high), interpolation="nearest", aspect="auto", zorder=0)
        # One more cell around, so that the borders reach the frame.
        x = left + (np.arange(-1, across + 1) + 0.5) / across * (right - left)
        y = high - (np.arange(-1, down + 1) + 0.5) / down * (high - low)
        cells = np.pad(self.cells, 1, mode="edge")
        for label in labels if len(labels) > 1 else ():
            axes.contour(x, y, (cells == label).astype(float), [0.5], colors=[INK], linewidths=0.4)


@dataclass(frozen=True)
class Chart:
    """A chart with its words. Series are drawn in their order."""

    kind: ClassVar[str] = "picture"
    title: str  # what it shows, in a few words
    text: str  # what there is to see, for those who cannot
    x: Axis
    y: Axis
    series: Sequence[Series]
    dividers: Sequence[tuple[float, str]] = ()  # values of x with a vertical line, and what stands right of it
    diagonal: bool = False  # whether a line goes from corner to corner
    labels: Sequence[tuple[float, float, str]] = ()  # texts at points; one for which there is no room is left out
    legend: bool = False  # whether there is a legend for a single series, too
    entries: Sequence[Series] = ()  # what the legend lists in place of the series, where those are many
    behind: Regions | None = None

    @property
    def titles(self) -> list[Sequence[str]]:
        """What the points say, for each series that is marked."""
        return [each.titles for each in self.series if each.marks]

    def paint(self, figure: Figure) -> None:
        """Draw it; the figure's width stays, and its height is set so that the legend has its room."""
        figure.set_figheight(0.66 * figure.get_figwidth())
        axes = figure.add_subplot()
        self.x.set_up(axes, "x")
        self.y.set_up(axes, "y")
        if self.x.title:  # else it is a map, with a frame
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y")
        if self.behind:
            self.behind.draw(axes)
        if self.diagonal:
            axes.plot([self.x.low, self.x.high], [self.y.low, self.y.high], ":", color=QUIET, lw=0.8)
        numbers = [len(each.points) for each in self.series]
        crowded = max(numbers, default=0) >= _CROWDED or sum(numbers) >= 2 * _CROWDED
        for place, each in enumerate(self.series):
            each.draw(axes, crowded, sum(before.marks for before in self.series[:place]))
        self._divide(axes, figure.get_figwidth())
        if len(self.series) > 1 or self.legend:
            _list(figure, self.entries or self.series)
        if self.labels:
            figure.draw_without_rendering()
            frame, taken = axes.get_window_extent(), list[Any]()
            for x, y, text in self.labels:
                _label(axes, x, y, text, frame, taken)

    def _divide(self, axes: Axes, width: float) -> None:
        """Vertical lines, each with its name above, cut where the next one begins."""
        from matplotlib import rcParams

        across = axes.transScale + axes.transLimits
        starts = [across.transform((value, self.y.low))[0] for value, _ in self.dividers]
        # Five sixths of the figure are the plot.
        letters = width * 72 * 5 / 6 / (_LETTER * rcParams["font.size"])
        for start, end, (value, text) in zip(starts, [*starts[1:], 1], self.dividers, strict=False):
            axes.axvline(value, color=QUIET, lw=0.8, ls=":")
            room = int((end - start) * letters)
            if room >= min(len(text), 6):
                said = clip(printable(text), room)
                axes.text(start, 1.02, said, transform=axes.transAxes, color=QUIET, va="bottom", size=SMALL)


def _list(figure: Figure, listed: Sequence[Series]) -> None:
    """A legend below the chart, in as many columns as there is room for; the figure grows by its height."""
    # A name that begins with a low line would be left out.
    names = [f"\u200b{clip(printable(each.name), _LEGEND_LETTERS)}" for each in listed]
    for columns in range(min(len(names), 4), 0, -1):
        drawn = figure.legend([each.handle() for each in listed], names, loc="outside lower left", ncols=columns)
        extent = drawn.get_window_extent()
        if columns == 1 or extent.width <= 0.97 * figure.bbox.width:
            break
        drawn.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)


def _label(axes: Axes, x: float, y: float, text: str, frame: BboxBase, taken: list[BboxBase]) -> None:
    """A text at the place nearest to a point, inside the frame, where it covers none of the others; or no text."""
    box = {"boxstyle": "square,pad=0.1", "fc": PAPER, "ec": "none", "alpha": 0.75}
    how: dict[str, Any] = {"ha": "center", "va": "center", "weight": "bold", "bbox": box}
    drawn = axes.annotate(printable(text), (x, y), (0, 0), textcoords="offset pixels", **how)
    own = drawn.get_window_extent().padded(1)
    moves = [(dx * own.width / 2, dy * own.height) for dx in (0, 1, -1, 2, -2) for dy in range(-3, 4)]
    for move in sorted(moves, key=lambda move: math.hypot(*move)):
        moved = own.translated(*move)
        if frame.contains(*moved.min) and frame.contains(*moved.max) and not moved.count_overlaps(taken):
            drawn.set_position(move)
            taken.append(moved)
            return
    drawn.remove()
