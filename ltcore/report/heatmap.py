"""Matrices of classes as inline SVG: one picture of coloured cells, so that a thousand classes are as good as ten."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from ltcore.report.chart import WIDTH
from ltcore.report.layout import shorten
from ltcore.report.markup import element

_LEAST_LEFT, _LEAST_TOP, _RIGHT, _BOTTOM = 70, 44, 46, 10

#: Up to so many classes, a cell has its number written in it.
_WRITTEN = 12
#: Units that a name takes along a side.
_ROOM = 12
_NAME_LETTERS = 13
_LETTER = 6.0  # width of a letter on average
#: Pixels of a side of the picture, about: several a cell, so that no program blurs the edges of few cells.
_PIXELS = 480

#: Different colours of values: more could not be told apart, and fewer make smaller files.
LEVELS = 65
#: Light to dark, and for changes, dark orange over white to dark blue: both told apart without seeing red from green.
_RISING = ((247, 251, 255), (158, 202, 225), (49, 130, 189), (8, 48, 107))
_CHANGING = (
    (127, 59, 8),
    (224, 130, 20),
    (253, 184, 99),
    (247, 247, 247),
    (146, 178, 222),
    (49, 104, 181),
    (8, 38, 99),
)
_NOTHING = (176, 176, 176)


@dataclass(frozen=True)
class _Box:
    """Where the cells are drawn: a square."""

    left: int
    top: int
    side: int


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

    def draw(self) -> Element:
        """The matrix as a figure."""
        longest = max((len(shorten(name, _NAME_LETTERS)) for name in self.names), default=0)
        left = max(_LEAST_LEFT, round(_LETTER * longest) + 9)
        box = _Box(left, max(_LEAST_TOP, round(_LETTER * longest) + 9), WIDTH - left - _RIGHT)
        said = f"{self.title}. {self.text}"
        height = box.top + box.side + _BOTTOM
        picture = element("svg", viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=said)
        levels = self.levels()
        picture.append(_image(levels, self.changes, box.left, box.top, box.side, box.side))
        picture.append(element("path", d=f"M{box.left} {box.top}h{box.side}v{box.side}h-{box.side}z", class_="frame"))
        picture.append(self._labels(box))
        if len(self.names) <= _WRITTEN:
            picture.append(self._written(box, levels))
        picture.append(self._scale(box))
        return element("figure", element("figcaption", self.title), picture)

    def levels(self) -> NDArray[np.uint8]:
        """[C, C] the colours of the cells: 0 for the lowest value, `LEVELS` less one for the highest; then nothing."""
        share = np.clip((self.values - self.low) / max(self.high - self.low, 1e-12), 0, 1)
        found = np.nan_to_num(share * (LEVELS - 1)).round().astype(np.uint8)
        found[np.isnan(share)] = LEVELS
        return found

    def write(self, value: float) -> str:
        """A value as it is written."""
        if np.isnan(value) or (self.percent and value == 0):  # most cells of a confusion matrix
            return ""
        sign = "+" if self.changes else ""
        if not self.percent:
            return f"{value:{sign}.1f}" if abs(value) < 100 else f"{value:{sign}.0f}"
        return "0" if round(100 * value) == 0 else f"{100 * value:{sign}.0f}"

    def _labels(self, box: _Box) -> Element:
        labels = element("g")
        step = box.side / max(len(self.names), 1)
        for place in range(0, len(self.names), max(1, math.ceil(_ROOM / step))):
            at, name = (place + 0.5) * step, shorten(self.names[place], _NAME_LETTERS)
            y, x = f"{box.top + at + 4:.1f}", f"{box.left + at:.1f}"
            labels.append(element("text", name, x=box.left - 5, y=y, class_="end name"))
            turned = f"rotate(-90 {x} {box.top - 5})"
            labels.append(element("text", name, x=x, y=box.top - 5, dy="0.35em", transform=turned, class_="name"))
        labels.append(element("text", f"{self.columns} →", x=4, y=14, class_="title"))
        labels.append(element("text", "class ↓", x=4, y=30, class_="title"))
        return labels

    def _written(self, box: _Box, levels: NDArray[np.uint8]) -> Element:
        written, step = element("g"), box.side / len(self.names)
        light = _palette(self.changes)[levels].astype(float) @ (0.299, 0.587, 0.114) > 140
        for row, column in np.ndindex(self.values.shape):
            if text := self.write(float(self.values[row, column])):
                how = f"value {'onlight' if light[row, column] else 'ondark'}"
                x, y = box.left + (column + 0.5) * step, box.top + (row + 0.5) * step + 4
                written.append(element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=how))
        return written

    def _scale(self, box: _Box) -> Element:
        """What the colours mean: a bar with its ends."""
        x = WIDTH - _RIGHT + 10
        bar = element("g")
        falling = np.arange(LEVELS, dtype=np.uint8)[::-1, None]
        bar.append(_image(falling, self.changes, x, box.top, 9, box.side))
        bar.append(element("path", d=f"M{x} {box.top}h9v{box.side}h-9z", class_="frame"))
        ends = [(self.high, 8.0), (self.low, float(box.side))]
        for value, down in [*ends, (0.0, box.side / 2 + 4)] if self.changes else ends:
            text = self.write(value) or "0"
            bar.append(element("text", text, x=x + 12, y=f"{box.top + down:.1f}", class_="name"))
        if self.percent:
            bar.append(element("text", "%", x=x, y=box.top - 6, class_="name"))
        return bar


def _palette(changes: bool) -> NDArray[np.uint8]:
    """[LEVELS + 1, 3] the colours of levels, that of nothing last."""
    anchors = np.array(_CHANGING if changes else _RISING)
    places, levels = np.linspace(0, 1, len(anchors)), np.linspace(0, 1, LEVELS)
    colors = np.stack([np.interp(levels, places, anchors[:, channel]) for channel in range(3)], -1)
    return np.vstack([colors.round(), [_NOTHING]]).astype(np.uint8)


def _image(levels: NDArray[np.uint8], changes: bool, x: float, y: float, width: float, height: float) -> Element:
    """Coloured cells [rows, columns] as a picture that fills a rectangle."""
    from PIL import Image

    times = [max(1, _PIXELS // size) if size > 1 else 1 for size in levels.shape]
    picture = Image.fromarray(levels.repeat(times[0], 0).repeat(times[1], 1), "P")
    picture.putpalette(_palette(changes).tobytes())
    held = io.BytesIO()
    picture.save(held, "PNG", optimize=True)
    address = f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
    return element(
        "image", href=address, x=x, y=y, width=width, height=height, preserveAspectRatio="none", class_="cells"
    )
