"""A report as tests read it, and the way back from places in a picture to values."""

import html
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
        charts: for each figure by its caption, its ticks, and the places and titles of its markers by ``points<n>``.
        styles: what each class of the figures' styles says.
        images: the sources of all images.
        text: all text outside scripts and styles.
        data: the embedded data.
    """

    VOID = ("meta", "link", "img", "br", "wbr")

    def __init__(self, path):
        super().__init__()
        self.figures, self.sections, self.charts, self.images, self.tags = {}, [], {}, [], []
        self.text, self.raw, self._open, self._figure = "", path.read_text(), [], None
        self._chart, self._tick, self._data = None, None, ""
        self._lists, self._item, self._column, self._said = [], None, 0, ""
        self.styles = dict(re.findall(r"^\.(c\d+) \{ (.*) \}$", self.raw, re.MULTILINE))
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
        if tag == "table":
            self._lists = []
        if tag == "tr":
            self._item, self._column = found.get("data-item"), -1
        if tag in ("th", "td"):
            self._column += 1
            if found.get("scope") == "col":
                self._lists.append(found.get("data-list"))
            elif self._item is not None and self._lists[self._column]:
                self._figure = f"{self._lists[self._column]}/{self._item}"
        if "data-figure" in found:
            self._figure = found["data-figure"]
        if tag == "img":
            self.images.append(found["src"])
        if tag == "figure":
            self._chart = {"x": [], "y": [], "series": {}}
        if tag == "use" and (tick := self._inside("xtick", "ytick")):
            self._tick = (tick[0], float(found[tick[0]]))
        if tag == "use" and (group := self._inside("points")):
            place = float(found["x"]), float(found["y"])
            self._chart["series"].setdefault(group, []).append([*place, self._said])

    def _inside(self, *starts):
        """The class of a group around this place that begins so; None where there is none."""
        names = (found.get("class", "").split(" ")[0] for tag, found in self._open if tag == "g")
        return next((name for name in names if name.startswith(starts)), None)

    def handle_endtag(self, tag):
        opened, _ = self._open.pop()
        assert opened == tag
        if tag in ("th", "td"):
            self._figure = None
        if tag == "figure":
            self._chart = None
        if tag == "g":
            self._said = ""

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
        if tags[-2:] == ["g", "title"]:
            self._said = text  # of all points in this group
        if tags and tags[-1] == "text" and self._inside("xtick", "ytick"):
            axis, place = self._tick
            if re.fullmatch(r"[\d.,e-]+", text):  # and no name
                self._chart[axis].append((place, float(text.replace(",", ""))))
        elif tags and tags[-1] == "text" and text.endswith(", percent"):  # an axis's title, behind its ticks
            axis = "y" if self._chart["y"] else "x"
            self._chart[axis] = [(place, value / 100) for place, value in self._chart[axis]]


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


def expanded(text, styles):
    """A part of a page with its figures' styles beside their classes."""

    def one(found):
        return f'{found[0]} style="{"; ".join(styles[name] for name in found[1].split() if name in styles)}"'

    return re.sub('class="([^"]*)"', one, text)


def drawn_lines(page, caption, width="1.1"):
    """The lines of a chart that are so wide: values of the axes in place of the picture's."""
    x, y = scale(page.charts[caption]["x"]), scale(page.charts[caption]["y"])
    figure = html.unescape(page.raw).split(f"<figcaption>{caption}</figcaption>")[1].partition("</figure>")[0]
    figure = expanded(figure, page.styles)
    paths = [each for each in re.findall("<path[^>]*>", figure) if re.search(f'stroke-width: {width}[;"]', each)]
    paths = [each for each in paths if "clip-path" in each]  # else it is a legend's
    places = [re.search(' d="M([^"]*)"', path)[1].split("L") for path in paths]
    return [[(x(float(a)), y(float(b))) for a, b in map(str.split, points)] for points in places]
