"""A report's figures as SVG files, one each, that need nothing beside them: for papers and documentation."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from ltcore.errors import RecipeError
from ltcore.files.output import write_output
from ltcore.files.writing import telling
from ltcore.report.chart import shapes
from ltcore.report.layout import shorten
from ltcore.report.markup import element

_OPTION = "--figures"
_HEAD = 26  # units above the picture, for its title
_LINE, _LETTER = 18, 6.4  # of the legend: height of a line, width of a letter on average
_SWATCH = 38
_TITLE_SIZE, _TITLE_LETTERS = 14.0, 70
#: What XML cannot hold, whatever escapes it.
_IMPOSSIBLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def prepare_folder(folder: Path) -> None:
    """Make the folder for figures where there is none.

    Raises:
        RecipeError: something else has its name, or the folder that it would be in is missing.
        RunError: it cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{_OPTION} {folder}: is no folder; name another one")
    if not folder.parent.is_dir():
        raise RecipeError(f"{_OPTION} {folder}: there is no folder {folder.parent}; make it, or name another one")
    with telling(folder, f"or choose another place with {_OPTION}"):
        folder.mkdir(exist_ok=True)


def write_figures(folder: Path, sections: Sequence[Element]) -> None:
    """Write every figure of some sections; a file of its name that is there is replaced.

    Raises:
        RunError: one cannot be written.
    """
    for name, figure in _named(sections):
        write_output(folder / f"{name}.svg", standalone(figure), _OPTION)


def _named(sections: Sequence[Element]) -> Iterator[tuple[str, Element]]:
    """Figures with names of small letters, digits and hyphens: section, title, the letter of one of several runs."""
    used: dict[str, int] = {}
    for section in sections:
        for figure in section.iter("figure"):
            words = (figure[0].text or "").partition(" (")[0].lower()  # without a figure that another run has not
            title = re.sub("[^a-z0-9]+", "-", words).strip("-")[:60].strip("-")
            parts = (section.get("id") or "", title, re.sub("[^a-z0-9]+", "-", figure.get("data-of", "").lower()))
            name = "-".join(part for part in parts if part)
            used[name] = used.get(name, 0) + 1
            yield (name if used[name] == 1 else f"{name}-{used[name]}"), figure


def standalone(figure: Element) -> bytes:
    """A figure of a page as an SVG file: title, picture, legend, markers and style, in light colours on white.

    Args:
        figure: what `ltcore.report.chart.Chart.draw` gives.
    """
    caption, picture, *rest = figure
    title = caption.text or ""
    shown = shorten(title, _TITLE_LETTERS)
    left, top, width, height = (float(part) for part in (picture.get("viewBox") or "").split())
    entries, legend_height = _legend(rest, width, _HEAD + height + 4)
    whole = _HEAD + height + legend_height
    size = min(_TITLE_SIZE, (width - 16) / (0.56 * max(len(shown), 1)))
    used = {(each.get("href") or "")[1:] for part in (picture, *entries) for each in part.iter("use")}
    content = element("g", *copy.deepcopy(list(picture)), transform=f"translate({0 - left:g} {_HEAD - top:g})")
    drawn = element(
        "svg",
        element("title", title),
        element("desc", picture.get("aria-label") or ""),
        element("style", _style()),
        element("defs", *(each for each in shapes() if each.get("id") in used)),
        element("rect", width="100%", height="100%", fill="#fff"),
        element("text", shown, x=8, y=17, font_weight="600", style=f"font-size: {size:.1f}px"),
        content,
        *entries,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {whole:g}",
        width=f"{width:g}",
        height=f"{whole:g}",
        role="img",
    )
    drawn.set("xmlns:xlink", "http://www.w3.org/1999/xlink")
    for each in drawn.iter():
        if address := each.get("href"):
            each.set("xlink:href", address)  # what programs older than SVG 2 read
        each.text, each.tail = _possible(each.text), _possible(each.tail)
        for name, value in each.items():
            each.set(name, _possible(value) or "")
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(drawn, encoding="unicode").encode() + b"\n"


def _legend(parts: Sequence[Element], width: float, top: float) -> tuple[list[Element], float]:
    """The entries of a legend placed in lines below the picture, and the height that they take."""
    entries: list[Element] = []
    x, y = 8.0, top + 10
    items = [item for part in parts for item in part.iter("li")]
    for item in items:
        swatch, text = item[0], item[0].tail or ""
        taken = _SWATCH + _LETTER * len(text) + 12
        if x > 8 and x + taken > width:
            x, y = 8.0, y + _LINE
        how = (swatch.get("class") or "").replace("swatch ", "")
        drawn = element("g", *copy.deepcopy(list(swatch)), class_=how, transform=f"translate({x + 16:g} {y:g})")
        entries += [drawn, element("text", text, x=f"{x + _SWATCH:g}", y=f"{y + 4:g}")]
        x += taken
    return entries, y - top + 12 if items else 6


def _style() -> str:
    """The style of charts, with the light colours in place of variables, which many programs do not know."""
    here = files(__package__)
    palette = (here / "style.css").read_text(encoding="utf-8").partition("}")[0]
    colors = dict(re.findall(r"(--\w+): (#\w+);", palette))
    style = (here / "figure.css").read_text(encoding="utf-8").partition("*/")[2]
    style = re.sub(r"var\((--\w+)\)", lambda found: colors[found[1]], style)
    return f"\ntext {{ font-family: Helvetica, Arial, sans-serif; }}{style}"


def _possible(text: str | None) -> str | None:
    return text if text is None else _IMPOSSIBLE.sub("\ufffd", text)
