"""HTML and SVG as trees, so that a class's name or a path is text wherever it stands, whatever characters it holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree.ElementTree import Element, tostring

Content = str | Element | None


def element(tag: str, *content: Content, **attributes: Any) -> Element:
    """An element.

    Args:
        tag: its name.
        content: text and elements; None is left out.
        attributes: ``class_`` for class, ``aria_label`` for aria-label; None and False are left out, True has no value.
    """
    made = Element(tag)
    for name, value in attributes.items():
        if value is not None and value is not False:
            made.set(_attribute(name), "" if value is True else str(value))
    append(made, content)
    return made


def append(parent: Element, content: Iterable[Content]) -> None:
    """Put text and elements behind what an element holds."""
    last = parent[-1] if len(parent) else None
    for part in content:
        if isinstance(part, Element):
            parent.append(part)
            last = part
        elif part and last is None:
            parent.text = (parent.text or "") + part
        elif part and last is not None:
            last.tail = (last.tail or "") + part


def _attribute(name: str) -> str:
    # SVG's viewBox and HTML's data-figure alike; Python's own words carry an underscore at their end.
    return name.rstrip("_").replace("_", "-")


def render(*elements: Element) -> str:
    """The elements as HTML, with their text escaped."""
    return "\n".join(tostring(each, encoding="unicode", method="html") for each in elements)


def embedded(identity: str, content: Any) -> Element:
    """Data for scripts and for programs that read the page: a script element with JSON."""
    # Inside a script nothing is escaped, so "</script>" in a name must not stand there as such.
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return element("script", text, type="application/json", id=identity)


def table(head: Sequence[Content], rows: Iterable[Sequence[Content | Element]], caption: str) -> Element:
    """A table that scrolls by itself where it is wider than the page; cells that are no element become one.

    Args:
        head: the titles of the columns.
        rows: cells; the first of each row is its heading.
        caption: what the table holds, for those who cannot see the page.
    """
    body = element("tbody")
    for row in rows:
        first, *others = row
        line = element("tr", first if _is_cell(first) else element("th", first, scope="row"))
        append(line, [cell if _is_cell(cell) else element("td", cell) for cell in others])
        body.append(line)
    titles = element("tr", *(element("th", title, scope="col") for title in head))
    whole = element("table", element("caption", caption), element("thead", titles), body)
    # Focusable, because what scrolls must scroll by the keyboard, too.
    return element("div", whole, class_="scroll", role="region", aria_label=caption, tabindex=0)


def details(summary: str, *content: Content, unfolded: bool = False) -> Element:
    """Something that is folded away, at least at first unless it is `unfolded`."""
    return element("details", element("summary", summary), *content, open=unfolded)


def _is_cell(content: Content) -> bool:
    return isinstance(content, Element) and content.tag in ("td", "th")
