"""A report as tests read it, and the way back from places in a picture to values."""

import json
import re
from html.parser import HTMLParser

import numpy as np

from ltcore.report import write_report


class Page(HTMLParser):
    """A report as a program reads it.

    Attributes:
        figures: place in the results -> text of every cell that shows a figure of a result.
        sections: the sections' ids in order.
        charts: for each figure, its caption, its ticks and the places and titles of its markers, by series.
        images: the sources of all images.
        text: all text outside scripts and styles.
        data: the embedded data.
    """

    VOID = ("meta", "link", "img", "br")

    def __init__(self, path):
        super().__init__()
        self.figures, self.sections, self.charts, self.images, self.tags = {}, [], {}, [], []
        self.text, self.raw, self._open, self._figure = "", path.read_text(), [], None
        self._chart, self._tick, self._data = None, None, ""
        self.feed(self.raw)
        assert self._open == [], "every element is closed"
        self.data = json.loads(self._data)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag not in self.VOID:
            self._open.append((tag, found))
        if tag == "section":
            self.sections.append(found["id"])
        if "data-figure" in found:
            self._figure = found["data-figure"]
        if tag == "img":
            self.images.append(found["src"])
        if tag == "figure":
            self._chart = {"x": [], "y": [], "series": {}}
        if tag == "text" and ("data-x" in found or "data-y" in found):
            axis = "x" if "data-x" in found else "y"
            place = float(found[axis]) - (4 if axis == "y" else 0)
            self._chart[axis].append((place, float(found[f"data-{axis}"])))
        if tag == "use" and not any("swatch" in each.get("class", "") for _, each in self._open):
            group = next(each["class"] for name, each in reversed(self._open) if name == "g")
            self._chart["series"].setdefault(group, []).append([float(found["x"]), float(found["y"]), ""])

    def handle_endtag(self, tag):
        opened, found = self._open.pop()
        assert opened == tag
        if "data-figure" in found:
            self._figure = None

    def handle_data(self, text):
        tags = [tag for tag, _ in self._open]
        if "script" in tags or "style" in tags:
            if self._open[-1][1].get("id") == "report-data":
                self._data += text
            return
        self.text += text
        if self._figure:
            assert self.figures.setdefault(self._figure, text) == text, "a figure is the same wherever it stands"
        if tags and tags[-1] == "figcaption":
            self.charts[text] = self._chart
        if tags[-2:] == ["use", "title"]:
            group = next(each["class"] for name, each in reversed(self._open) if name == "g")
            self._chart["series"][group][-1][2] = text


def value_at(content, path):
    """The value at a place like ``stages/0/test/top1``."""
    for key in path.split("/"):
        content = content[int(key) if isinstance(content, list) else key]
    return content


def scale(ticks, logarithmic=False):
    """From a place in the picture to a value, by the axis's ticks."""
    places, values = np.array(sorted(ticks)).T
    slope, start = np.polyfit(places, np.log(values) if logarithmic else values, 1)
    return lambda place: np.exp(slope * place + start) if logarithmic else slope * place + start


def report(runs, out, **choices):
    notes = write_report(runs, out, **{"features": False, "images": False, **choices})
    return Page(out), notes


def drawn_lines(page, caption):
    """The lines of a chart: values of the axes in place of the picture's."""
    x, y = scale(page.charts[caption]["x"]), scale(page.charts[caption]["y"])
    figure = page.raw.split(f"<figcaption>{caption}</figcaption>")[1].partition("</figure>")[0].partition("<ul")[0]
    paths = [each for each in re.findall("<path[^>]*>", figure) if 'class="line"' in each]
    places = [re.search(' d="M([^"]*)"', path)[1].split("L") for path in paths]
    return [[(x(float(a)), y(float(b))) for a, b in map(str.split, points)] for points in places]
