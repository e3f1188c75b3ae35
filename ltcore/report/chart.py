"""Charts as inline SVG: axes, points and lines. What a colour says, a marker or a dash says as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from ltcore.report.markup import element

# Small enough to be read at the width of a phone, where 440 units are some 350 pixels.
WIDTH, HEIGHT = 440, 290
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 24, 44

#: Styles of series, in a fixed order: the colours are in style.css, the markers here.
MARKERS = (
    "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",  # circle
    "M-3-3h6v6h-6z",  # square
    "M0-4l3.8 6.6h-7.6z",  # triangle
    "M0-4.2l4.2 4.2l-4.2 4.2l-4.2-4.2z",  # diamond
    "M-3-3l6 6M3-3l-6 6",  # cross
    "M0-4v8M-4 0h8",  # plus
    "M0 4l3.8-6.6h-7.6z",  # triangle, upside down
    "M-3.4-3.6h6.8l-6.8 7.2h6.8z",  # hourglass
)
#: Sizes of markers by the names that go before their numbers.
SIZES = {"marker": 1, "small": 0.65, "tiny": 0.45}
#: Where series are drawn: left, top, width and height.
PLOT = (LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
#: Where a series has this many points, or all have twice as many, all markers of the chart are smaller.
CROWDED = 60
#: Width of a letter on average.
_LETTER = 6.3
DASHES = (None, "7 3", "2 2.5", "9 3 2 3")


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`.

    Attributes:
        title: what it measures, with its unit.
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

    def place(self, value: float) -> float:
        """Where a value stands, 0 at the beginning and 1 at the end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Values with what is written beside them."""
        if self.named is not None:
            return list(self.named)
        found = _powers(self.low, self.high) if self.log else _round_values(self.low, self.high, self.whole)
        return [(value, f"{100 * value:g}" if self.percent else _plain(value)) for value in found]


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

    @property
    def classes(self) -> str:
        """The classes by which style.css colours it."""
        how = (" hollow" if self.hollow else "") + (" faint" if self.faint else "")
        return f"s{self.style % len(MARKERS)}{how}"

    @property
    def marker(self) -> str:
        """The name of its marker; the sizes are `SIZES`."""
        number = self.style if self.shape is None else self.shape
        return f"{'tiny' if self.tiny else 'marker'}{number % len(MARKERS)}"

    @property
    def dashes(self) -> str | None:
        """The pattern of its line."""
        return DASHES[self.dash % len(DASHES)]


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
        labels: texts at points, (x, y, text).
        legend: whether there is a legend for a single series, too.
        entries: what the legend lists in place of the series, where those are many.
        behind: drawn behind the series, in the place that `PLOT` names.
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
    behind: Element | None = None

    def draw(self) -> Element:
        """The chart as a figure with its legend."""
        # A map has neither numbers nor titles beside it, and needs no room for them.
        box = f"0 0 {WIDTH} {HEIGHT}" if self.x.title else " ".join(map(str, _around(PLOT, 8)))
        picture = element("svg", viewBox=box, role="img", aria_label=f"{self.title}. {self.text}")
        if self.behind is not None:
            picture.append(self.behind)
        picture.append(self._grid())
        if self.diagonal:
            line = f"M{LEFT} {HEIGHT - BOTTOM}L{WIDTH - RIGHT} {TOP}"
            picture.append(element("path", d=line, class_="diagonal"))
        for each in self.series:
            picture.append(self._draw(each))
        for x, y, text in self.labels:
            picture.append(element("text", text, x=_short(self._x(x)), y=_short(self._y(y) + 4), class_="label"))
        legend = None
        if len(self.series) > 1 or self.legend:
            listed = self.entries or self.series
            legend = element("ul", *(element("li", swatch(each), each.name) for each in listed), class_="legend")
        return element("figure", element("figcaption", self.title), picture, legend)

    def _x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * self.x.place(value)

    def _y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * self.y.place(value)

    def _grid(self) -> Element:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        grid = element("g", class_="grid")
        for value, text in self.y.ticks():
            y = _short(self._y(value))
            grid.append(element("path", d=f"M{LEFT} {y}H{right}"))
            grid.append(element("text", text, x=LEFT - 6, y=_short(float(y) + 4), class_="end", data_y=value))
        for value, text in self.x.ticks():
            x = _short(self._x(value))
            grid.append(element("path", d=f"M{x} {bottom}v4", class_="axis"))
            grid.append(element("text", text, x=x, y=bottom + 16, class_="middle", data_x=value))
        ends = [*(self._x(value) for value, _ in self.dividers[1:]), WIDTH]
        for (value, text), end in zip(self.dividers, ends, strict=False):
            x = _short(self._x(value))
            grid.append(element("path", d=f"M{x} {TOP}V{bottom}", class_="divider"))
            if end - float(x) > _LETTER * len(text):  # else it would run into the next one
                grid.append(element("text", text, x=_short(float(x) + 3), y=TOP - 10, class_="divider"))
        frame = f"M{LEFT} {TOP}V{bottom}H{right}" + ("" if self.x.title else f"V{TOP}z")
        grid.append(element("path", d=frame, class_="axis"))
        grid.append(element("text", self.x.title, x=(LEFT + right) // 2, y=HEIGHT - 8, class_="middle title"))
        middle = (TOP + bottom) // 2
        turned = f"rotate(-90 13 {middle})"
        grid.append(element("text", self.y.title, x=13, y=middle, transform=turned, class_="middle title"))
        return grid

    def _draw(self, series: Series) -> Element:
        group = element("g", class_=series.classes)
        placed = self._placed(series.points)
        if series.line and placed:
            group.append(element("path", d=_path(placed), class_="line", stroke_dasharray=series.dashes))
        if series.marks:
            numbers = [len(each.points) for each in self.series]
            crowded = max(numbers) >= CROWDED or sum(numbers) >= 2 * CROWDED
            marker = f"#{series.marker.replace('marker', 'small') if crowded else series.marker}"
            titles = series.titles or [""] * len(placed)
            for (x, y), title in zip(placed, titles, strict=True):
                group.append(element("use", element("title", title) if title else None, href=marker, x=x, y=y))
        if series.trend:  # above the points, which would hide it
            path = _path(self._placed(series.trend))
            group.append(element("path", d=path, class_="line trend", stroke_dasharray=series.dashes))
        return group

    def _placed(self, points: Sequence[tuple[float, float]]) -> list[tuple[str, str]]:
        return [(_short(self._x(x)), _short(self._y(y))) for x, y in points]


def swatch(series: Series) -> Element:
    """A series's line and marker, for a legend."""
    picture = element("svg", viewBox="-16 -6 32 12", class_=f"swatch {series.classes}", aria_hidden="true")
    if series.line or series.trend:
        picture.append(element("path", d="M-16 0H16", class_="line", stroke_dasharray=series.dashes))
    if series.marks:
        picture.append(element("use", href=f"#{series.marker}"))
    return picture


def definitions() -> Element:
    """The markers that all charts of a page refer to."""
    return element("svg", element("defs", *shapes()), width=0, height=0, class_="definitions", aria_hidden="true")


def shapes() -> list[Element]:
    """Every marker in every size, under the name by which charts refer to it."""
    return [
        element("path", id=f"{size}{number}", d=shape, transform=None if factor == 1 else f"scale({factor})")
        for size, factor in SIZES.items()
        for number, shape in enumerate(MARKERS)
    ]


def _around(place: tuple[int, int, int, int], room: int) -> tuple[int, int, int, int]:
    left, top, width, height = place
    return left - room, top - room, width + 2 * room, height + 2 * room


def _path(placed: Sequence[tuple[str, str]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in placed)


def _short(value: float) -> str:
    """A coordinate with one decimal; a tenth of a unit cannot be seen, and pages hold thousands of them."""
    return f"{value:.1f}".removesuffix(".0")


def _plain(value: float) -> str:
    """A tick's number: ``2,000``, ``0.05``, ``5e-4``."""
    if 0 < value < 0.01:
        digits, exponent = f"{value:.0e}".split("e")
        return f"{digits}e{int(exponent)}"
    return f"{value:,.7g}"


def _round_values(low: float, high: float, whole: bool, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`; of 1 at least, if `whole`."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(n * power for n in (1, 2, 5, 10) if (high - low) / (n * power) <= most)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`; with their multiples by 2 and 5 where there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5), tuple(range(1, 10))):
        found = [n * 10.0**e for e in exponents for n in factors if low <= n * 10.0**e <= high]
        if len(found) >= 4:
            break
    return found
