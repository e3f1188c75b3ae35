"""Matrices of classes as inline SVG: one picture of coloured cells, so that a thousand classes are as good as ten."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from ltcore.report.chart import WIDTH
from ltcore.report.layout import shorten
from ltcore.report.markup import element

_LEFT, _TOP, _RIGHT, _BOTTOM = 86, 86, 46, 10
_SIDE = WIDTH - _LEFT - _RIGHT
_HEIGHT = _TOP + _SIDE + _BOTTOM

#: Up to so many classes, a cell has its number written in it.
_WRITTEN = 12
#: Units that a name takes along a side.
_ROOM = 12
_NAME_LETTERS = 13
#: Pixels of a side of the picture, about: several a cell, so that no program blurs the edges of few cells.
_PIXELS = 480

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
        said = f"{self.title}. {self.text}"
        picture = element("svg", viewBox=f"0 0 {WIDTH} {_HEIGHT}", role="img", aria_label=said)
        picture.append(_image(self.colors(), _LEFT, _TOP, _SIDE, _SIDE))
        frame = f"M{_LEFT} {_TOP}h{_SIDE}v{_SIDE}h-{_SIDE}z"
        picture.append(element("path", d=frame, class_="frame"))
        picture.append(self._labels())
        if len(self.names) <= _WRITTEN:
            picture.append(self._written())
        picture.append(self._scale())
        return element("figure", element("figcaption", self.title), picture)

    def colors(self) -> NDArray[np.uint8]:
        """[C, C, 3] the colours of the cells."""
        share = np.clip((self.values - self.low) / max(self.high - self.low, 1e-12), 0, 1)
        return _colors(share, _CHANGING if self.changes else _RISING)

    def write(self, value: float) -> str:
        """A value as it is written."""
        if np.isnan(value):
            return ""
        sign = "+" if self.changes else ""
        if not self.percent:
            return f"{value:{sign}.1f}" if abs(value) < 100 else f"{value:{sign}.0f}"
        return "0" if round(100 * value) == 0 else f"{100 * value:{sign}.0f}"

    def _labels(self) -> Element:
        labels = element("g")
        step = _SIDE / max(len(self.names), 1)
        every = max(1, -(-_ROOM // max(step, 1e-9)))
        for place in range(0, len(self.names), int(every)):
            at, name = (place + 0.5) * step, shorten(self.names[place], _NAME_LETTERS)
            labels.append(element("text", name, x=_LEFT - 5, y=f"{_TOP + at + 4:.1f}", class_="end name"))
            x = _LEFT + at
            turned = f"rotate(-90 {x:.1f} {_TOP - 5})"
            labels.append(element("text", name, x=f"{x:.1f}", y=_TOP - 5, dy="0.35em", transform=turned, class_="name"))
        labels.append(element("text", f"{self.columns} →", x=4, y=14, class_="title"))
        labels.append(element("text", "class ↓", x=4, y=30, class_="title"))
        return labels

    def _written(self) -> Element:
        written, step = element("g"), _SIDE / len(self.names)
        light = self.colors().astype(float) @ (0.299, 0.587, 0.114) > 140
        for row, column in np.ndindex(self.values.shape):
            if text := self.write(float(self.values[row, column])):
                how = f"value {'onlight' if light[row, column] else 'ondark'}"
                x, y = _LEFT + (column + 0.5) * step, _TOP + (row + 0.5) * step + 4
                written.append(element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=how))
        return written

    def _scale(self) -> Element:
        """What the colours mean: a bar with its ends."""
        x, steps = WIDTH - _RIGHT + 10, 64
        share = np.linspace(1, 0, steps)[:, None]
        bar = element("g", _image(_colors(share, _CHANGING if self.changes else _RISING), x, _TOP, 9, _SIDE))
        bar.append(element("path", d=f"M{x} {_TOP}h9v{_SIDE}h-9z", class_="frame"))
        ends = [(self.high, 8), (self.low, _SIDE)] + ([(0.0, _SIDE / 2 + 4)] if self.changes else [])
        for value, down in ends:
            written = self.write(value) or "0"
            bar.append(element("text", written, x=x + 12, y=f"{_TOP + down:.1f}", class_="name"))
        if self.percent:
            bar.append(element("text", "%", x=x, y=_TOP - 6, class_="name"))
        return bar


def _colors(share: NDArray[np.float64], anchors: Sequence[tuple[int, int, int]]) -> NDArray[np.uint8]:
    """Shares from 0 to 1, or NaN, to colours [..., 3] between the anchors."""
    known = np.nan_to_num(share)
    places = np.linspace(0, 1, len(anchors))
    channels = [np.interp(known, places, [anchor[i] for anchor in anchors]) for i in range(3)]
    found = np.stack(channels, -1).round().astype(np.uint8)
    found[np.isnan(share)] = _NOTHING
    return found


def _image(colors: NDArray[np.uint8], x: float, y: float, width: float, height: float) -> Element:
    """Coloured cells as a picture that fills a rectangle."""
    from PIL import Image

    times = [max(1, _PIXELS // size) for size in colors.shape[:2]]
    pixels = colors.repeat(times[0], 0).repeat(times[1] if colors.shape[1] > 1 else 1, 1)
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG", optimize=True)
    address = f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
    return element(
        "image", href=address, x=x, y=y, width=width, height=height, preserveAspectRatio="none", class_="cells"
    )
