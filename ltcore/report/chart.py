"""Charts: axes, points and lines, drawn by matplotlib. What a colour says, a marker or a dash says as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltcore.report.labels import clip
from ltcore.untrusted import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

#: Colours on light paper: four of Okabe and Ito's and four more that colour-blind readers tell apart; dark ones are in
#: style.css. No colour is plain black or white, which matplotlib leaves out of an SVG.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#010101", "#8800ff", "#663311", "#ee0055")
INK, QUIET, LINE, PAPER = "#1b1f24", "#57606a", "#d0d7de", "#fefefe"
#: Markers of series, in the order of the colours.
MARKERS = ("o", "s", "^", "D", "x", "+", "v", "*")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.7)), (0, (1.2, 1.4)), (0, (5, 1.7, 1.2, 1.7)))

#: Where a series has this many points, or all have twice as many, all markers of the chart are smaller.
CROWDED = 60
_MARKER, _SMALL, _TINY = 3.8, 0.65, 0.45  # points across, and how much smaller markers can be
_LETTER = 0.56  # width of a letter on average, of its height
_LEGEND_LETTERS = 40
_TICKS = 6  # at most, beside an axis that is not logarithmic


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`.

    Attributes:
        title: what it measures, with its unit; empty for a map, whose places mean nothing.
        low: the value at its beginning; above 0 where it is logarithmic.
        high: the value at its end.
        log: whether it is logarithmic.
        percent: whether its fractions are shown in percent.
        whole: whether only whole numbers are written beside it.
        named: places with names of their own, in place of round numbers.
    """

    title: str
    low: float
    high: float
    log: bool = False
    percent: bool = False
    whole: bool = False
    named: tuple[tuple[float, str], ...] | None = None

    def ticks(self) -> list[tuple[float, str]]:
        """Values with what is written beside them."""
        from matplotlib.ticker import MaxNLocator

        if self.named is not None:
            return list(self.named)
        if self.log:
            found = _powers(self.low, self.high)
        else:
            located = MaxNLocator(_TICKS, steps=[1, 2, 5, 10], integer=self.whole).tick_values(self.low, self.high)
            room = 1e-9 * (self.high - self.low)
            found = [float(value) for value in located if self.low - room <= value <= self.high + room]
        return [(value, f"{100 * value:.7g}" if self.percent else _plain(value)) for value in found]


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes:
        name: for the legend.
        points: pairs of x and y.
        style: number of its colour and marker.
        titles: what each point says when it is pointed at; empty for nothing.
        line: whether the points are joined.
        marks: whether they are marked.
        dash: number of the line's dash.
        hollow: whether markers are outlined only.
        faint: whether markers are half transparent.
        tiny: whether markers are half as large.
        shape: number of its marker, where it is not that of its colour.
        trend: more points, joined by a line without markers.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: int
    titles: Sequence[str] = ()
    line: bool = False
    marks: bool = True
    dash: int = 0
    hollow: bool = False
    faint: bool = False
    tiny: bool = False
    shape: int | None = None
    trend: Sequence[tuple[float, float]] = ()

    def marked(self, crowded: bool) -> dict[str, Any]:
        """How matplotlib draws its markers."""
        color = COLORS[self.style % len(COLORS)]
        number = self.style if self.shape is None else self.shape
        return {
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": _MARKER * (_TINY if self.tiny else _SMALL if crowded else 1),
            "markeredgecolor": color,
            "markerfacecolor": "none" if self.hollow else color,
            "markeredgewidth": 0.8,
            "alpha": 0.45 if self.faint else None,
        }

    def lined(self) -> dict[str, Any]:
        """How matplotlib draws its line."""
        width = 1.6 if self.trend else 1.1
        return {"color": COLORS[self.style % len(COLORS)], "linestyle": DASHES[self.dash % len(DASHES)], "lw": width}


@dataclass(frozen=True)
class Regions:
    """What fills the plot behind the points.

    Attributes:
        cells: [rows, columns] labels, the upper row first.
        styles: for each label the number of its colour; other labels are grey.
    """

    cells: NDArray[np.int64]
    styles: dict[int, int]


@dataclass(frozen=True)
class Chart:
    """A chart with its words.

    Attributes:
        title: what it shows, in a few words.
        text: what there is to see, for those who cannot.
        x: the horizontal axis.
        y: the vertical axis.
        series: drawn in this order.
        dividers: values of x with a vertical line, and what stands right of it.
        diagonal: whether a line goes from corner to corner.
        labels: texts at points, (x, y, text); one for which there is no room is left out.
        legend: whether there is a legend for a single series, too.
        entries: what the legend lists in place of the series, where those are many.
        behind: drawn behind the series.
    """

    title: str
    text: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    dividers: Sequence[tuple[float, str]] = ()
    diagonal: bool = False
    labels: Sequence[tuple[float, float, str]] = ()
    legend: bool = False
    entries: Sequence[Series] = ()
    behind: Regions | None = None

    @property
    def titles(self) -> list[Sequence[str]]:
        """What the points say, for each series that is marked."""
        return [each.titles for each in self.series if each.marks]

    def paint(self, figure: Figure) -> None:
        """Draw it; the figure's height is set so that the legend has its room.

        The markers of the n-th series that is marked are in the group ``points<n>`` of an SVG.
        """
        width = figure.get_figwidth()
        figure.set_figheight(0.66 * width)
        axes = figure.add_subplot()
        axes.set(xlim=(self.x.low, self.x.high), ylim=(self.y.low, self.y.high))
        self._scales(axes)
        if self.behind is not None:
            self._regions(axes, self.behind)
        if self.diagonal:
            axes.plot([self.x.low, self.x.high], [self.y.low, self.y.high], ":", color=QUIET, lw=0.8)
        numbers = [len(each.points) for each in self.series]
        crowded = bool(numbers) and (max(numbers) >= CROWDED or sum(numbers) >= 2 * CROWDED)
        marked = 0
        for each in self.series:
            _draw(axes, each, crowded, marked)
            marked += each.marks
        self._divide(axes, width)
        listed = self.entries or self.series
        if len(self.series) > 1 or self.legend:
            _legend(figure, [replace(each, tiny=False) for each in listed])
        if self.labels:
            self._label(figure, axes)

    def _scales(self, axes: Axes) -> None:
        for axis, drawn, set_scale in ((self.x, axes.xaxis, axes.set_xscale), (self.y, axes.yaxis, axes.set_yscale)):
            set_scale("log" if axis.log else "linear")
            drawn.set_minor_locator(_none())
            ticks = axis.ticks()
            drawn.set_ticks([value for value, _ in ticks], [printable(text) for _, text in ticks])
            drawn.set_label_text(axis.title, color=QUIET)
        if self.x.title:  # else it is a map, with a frame
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y")

    def _regions(self, axes: Axes, behind: Regions) -> None:
        from matplotlib.colors import to_rgb

        down, across = behind.cells.shape
        labels, places = np.unique(behind.cells, return_inverse=True)
        styles = [behind.styles.get(label) for label in labels.tolist()]
        colors = np.array([to_rgb(QUIET if style is None else COLORS[style]) for style in styles])
        frame = (self.x.low, self.x.high, self.y.low, self.y.high)
        pale = 1 - 0.18 * (1 - colors[places.reshape(down, across)])
        axes.imshow(pale, extent=frame, interpolation="nearest", aspect="auto", zorder=0)
        # One more cell around, so that the borders reach the frame.
        x = self.x.low + (np.arange(-1, across + 1) + 0.5) / across * (self.x.high - self.x.low)
        y = self.y.high - (np.arange(-1, down + 1) + 0.5) / down * (self.y.high - self.y.low)
        cells = np.pad(behind.cells, 1, mode="edge")
        for label in labels.tolist():
            inside = (cells == label).astype(float)
            if inside.min() < 0.5:
                axes.contour(x, y, inside, [0.5], colors=[INK], linewidths=0.4)

    def _divide(self, axes: Axes, width: float) -> None:
        """Vertical lines, each with its name above, cut where the next one begins."""
        from matplotlib import rcParams

        place = axes.transData.transform
        ends = [*(value for value, _ in self.dividers[1:]), self.x.high]
        whole = place((self.x.high, self.y.low))[0] - place((self.x.low, self.y.low))[0]
        for (value, text), end in zip(self.dividers, ends, strict=False):
            axes.axvline(value, color=QUIET, lw=0.8, ls=":")
            share = (place((end, self.y.low))[0] - place((value, self.y.low))[0]) / whole
            # Five sixths of the figure are the plot; what is left of the place's own width holds so many letters.
            letters = int(share * width * 72 * 5 / 6 / (_LETTER * rcParams["font.size"]))
            if letters >= min(len(text), 6):
                said = clip(printable(text), letters)
                above = axes.get_xaxis_transform()
                axes.text(value, 1.02, said, transform=above, color=QUIET, ha="left", va="bottom", size="small")

    def _label(self, figure: Figure, axes: Axes) -> None:
        """Names at points, moved a little or left out so that none lies on another."""
        figure.draw_without_rendering()
        taken: list[Any] = []
        frame = axes.get_window_extent()
        for x, y, text in self.labels:
            drawn = axes.annotate(
                printable(text),
                (x, y),
                xytext=(0, 0),
                textcoords="offset points",
                ha="center",
                va="center",
                weight="bold",
                bbox={"boxstyle": "square,pad=0.1", "fc": PAPER, "ec": "none", "alpha": 0.75},
            )
            if not _placed(drawn, frame, taken):
                drawn.remove()


def _placed(drawn: Text, frame: Any, taken: list[Any]) -> bool:
    """Move a text to the nearest place in the frame where it covers none of the others; whether there is one."""
    height = drawn.get_window_extent().height * 72 / drawn.get_figure(root=True).dpi  # type: ignore[union-attr]
    width = drawn.get_window_extent().width * 72 / drawn.get_figure(root=True).dpi  # type: ignore[union-attr]
    moves = [(dx * width / 2, dy * 1.1 * height) for dx in (0, 1, -1, 2, -2) for dy in (0, 1, -1, 2, -2, 3, -3)]
    for move in sorted(moves, key=lambda move: math.hypot(*move)):
        drawn.set_position(move)
        box = drawn.get_window_extent().padded(1)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if inside and not any(box.overlaps(other) for other in taken):
            taken.append(box)
            return True
    return False


def _draw(axes: Axes, series: Series, crowded: bool, number: int) -> None:
    x, y = zip(*series.points, strict=True) if series.points else ((), ())
    if series.line:
        axes.plot(x, y, **series.lined())
    if series.marks:
        axes.plot(x, y, ls="none", gid=f"points{number}", clip_on=False, zorder=3, **series.marked(crowded))
    if series.trend:  # above the points, which would hide it
        axes.plot(*zip(*series.trend, strict=True), zorder=4, **series.lined())


def _legend(figure: Figure, listed: Sequence[Series]) -> None:
    """A legend below the chart, in as many columns as there is room for; the figure grows by its height."""
    handles = [_handle(each) for each in listed]
    # A name that begins with a low line would be left out.
    names = [f"\u200b{clip(printable(each.name), _LEGEND_LETTERS)}" for each in listed]
    for columns in range(min(len(names), 4), 0, -1):
        drawn = figure.legend(handles, names, loc="outside lower left", ncols=columns)
        extent = drawn.get_window_extent()
        if columns == 1 or extent.width <= 0.97 * figure.bbox.width:
            break
        drawn.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)


def _handle(series: Series) -> Line2D:
    from matplotlib.lines import Line2D

    line = series.lined() if series.line or series.trend else {"ls": "none"}
    return Line2D([], [], **line, **(series.marked(False) if series.marks else {}))


def _none() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _plain(value: float) -> str:
    """A tick's number: ``2,000``, ``0.05``, ``5e-4``."""
    if 0 < value < 0.01:
        digits, exponent = f"{value:.0e}".split("e")
        return f"{digits}e{int(exponent)}"
    return f"{value:,.7g}"


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`; with their multiples by 2 and 5 where there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5), tuple(range(1, 10))):
        found = [n * 10.0**e for e in exponents for n in factors if low <= n * 10.0**e <= high]
        if len(found) >= 4:
            break
    return found
