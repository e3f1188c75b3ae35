"""What a page is made of: sections of texts, tables and figures, which the template writes as HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ltcore.report.figures import Picture


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than text.

    Attributes:
        text: what stands in it.
        kind: ``number``, ``path`` or ``state``; empty for text.
        figure: the place in the results of the figure that it shows, with slashes; None for another text.
        key: the number of the run whose colour stands before it.
    """

    text: str
    kind: str = ""
    figure: str | None = None
    key: int | None = None


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Code:
    """Text that stands as it is, with what it is for those who cannot see it."""

    kind: ClassVar[str] = "code"
    text: str
    label: str


@dataclass(frozen=True)
class Heading:
    """A heading inside a section.

    Attributes:
        text: the words.
        level: 3 or 4.
        key: the number of the run whose colour stands before it.
    """

    kind: ClassVar[str] = "heading"
    text: str
    level: int = 3
    key: int | None = None


@dataclass(frozen=True)
class Table:
    """A table that scrolls by itself where it is wider than the page.

    Attributes:
        head: the titles of the columns.
        rows: cells; the first of each row is its heading.
        caption: what the table holds.
    """

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str


@dataclass(frozen=True)
class Drawn:
    """A figure."""

    kind: ClassVar[str] = "drawn"
    picture: Picture


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix that script.js draws from the page's data.

    Attributes:
        run: the run's number in the page.
        label: what the matrix is, and its keys, for those who cannot see it.
        picture: it as a figure of its own.
    """

    kind: ClassVar[str] = "confusion"
    run: int
    label: str
    picture: Picture


@dataclass(frozen=True)
class Image:
    """An example image: its address, its description, what stands below it, and whether its pixels are squares."""

    address: str
    alt: str
    below: str
    small: bool


@dataclass(frozen=True)
class Card:
    """A heading with sentences and images, one of several side by side."""

    title: Heading
    texts: Sequence[str]
    images: Sequence[Image]


@dataclass(frozen=True)
class Cards:
    """Cards side by side."""

    kind: ClassVar[str] = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Folded:
    """Something that is folded away, at least at first unless it is `unfolded`."""

    kind: ClassVar[str] = "folded"
    summary: str
    parts: Sequence[Part]
    unfolded: bool = False


@dataclass(frozen=True)
class Panel:
    """Parts that belong together.

    Attributes:
        parts: the parts.
        letter: that of the run whose they are, where there are several.
    """

    kind: ClassVar[str] = "panel"
    parts: Sequence[Part]
    letter: str = ""


@dataclass(frozen=True)
class Panels:
    """Parts side by side where there is room, two or, if `narrow`, three in a row."""

    kind: ClassVar[str] = "panels"
    parts: Sequence[Part]
    narrow: bool = False


Part = Text | Code | Heading | Table | Drawn | Confusion | Cards | Folded | Panel | Panels


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        id: by which links find it.
        title: its heading.
        text: a sentence on what it shows.
        parts: what it shows.
    """

    id: str
    title: str
    text: str
    parts: Sequence[Part]


def pictures(parts: Sequence[Part], letter: str = "") -> Iterator[tuple[Picture, str]]:
    """All figures in some parts, each with the letter of its run."""
    for part in parts:
        if isinstance(part, Drawn | Confusion):
            yield part.picture, letter
        elif isinstance(part, Folded | Panel | Panels):
            yield from pictures(part.parts, part.letter if isinstance(part, Panel) else letter)
