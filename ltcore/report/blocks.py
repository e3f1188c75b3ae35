"""What a page is made of: sections of texts, tables and figures of runs, which template.html writes as HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ltcore.contract.figures import FIGURES
from ltcore.contract.result import Figures
from ltcore.report.chart import Chart
from ltcore.report.data import ReportedRun
from ltcore.report.figures import Picture
from ltcore.report.labels import percent
from ltcore.report.material import Material
from ltcore.report.matrix import Matrix


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than text."""

    text: str
    kind: str = ""  # ``path`` or ``state``; empty for a number
    figure: str | None = None  # the place in the results of the figure that it shows, with slashes
    key: int | None = None  # the number of the run whose colour stands before it


class _Part:
    @property
    def kind(self) -> str:
        """The macro of template.html that writes it."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Code(_Part):
    """Text that stands as it is, with what it is for those who cannot see it."""

    text: str
    label: str


@dataclass(frozen=True)
class Heading(_Part):
    """A heading inside a section, with the colour of the run with that number."""

    text: str
    level: int = 3
    key: int | None = None


Row: TypeAlias = Sequence[str | Cell]


@dataclass(frozen=True)
class Table(_Part):
    """A table that scrolls by itself where it is wider than the page."""

    head: Sequence[str]
    rows: Sequence[Row]  # the first cell of each row is its heading
    caption: str
    lists: Sequence[str] = ()  # of each column, the place in the results of the list that it shows; empty for none
    items: Sequence[int] = ()  # of each row, the place in those lists


@dataclass(frozen=True)
class Confusion(_Part):
    """A confusion matrix that script.js draws from the page's data."""

    run: int  # the run's number in the page
    label: str  # what the matrix is, and its keys, for those who cannot see it
    picture: Matrix  # it as a figure of its own


@dataclass(frozen=True)
class Thumbnail:
    """A small picture with what stands below it."""

    address: str  # a data URI
    alt: str
    below: str
    small: bool  # whether its pixels should be seen as squares


@dataclass(frozen=True)
class Card:
    """Some pictures with a title and lines above them."""

    title: str
    lines: Sequence[str]
    thumbnails: Sequence[Thumbnail]


@dataclass(frozen=True)
class Cards(_Part):
    """Cards side by side, as many as there is room for."""

    cards: Sequence[Card]
    level: int  # of their headings


@dataclass(frozen=True)
class Folded(_Part):
    """Something that is folded away, at least at first unless it is `unfolded`."""

    summary: str
    parts: Sequence[Part]
    unfolded: bool = False
    printed: bool = False  # whether it is on paper all the same


@dataclass(frozen=True)
class Panel(_Part):
    """Parts of the run with that letter; of a single one without a letter."""

    parts: Sequence[Part]
    letter: str = ""


@dataclass(frozen=True)
class Panels(_Part):
    """Parts side by side where there is room, two or, if `narrow`, three in a row."""

    parts: Sequence[Part]
    narrow: bool = False


#: A string is a paragraph.
Part: TypeAlias = "str | Picture | Code | Heading | Table | Confusion | Cards | Folded | Panel | Panels"


@dataclass(frozen=True)
class Section:
    """A section of the page, which is left out where it has no parts."""

    id: str  # by which links find it
    title: str
    text: str  # a sentence on what it shows
    parts: Sequence[Part]
    controls: str = ""  # a sentence on what can be done with it, which is not printed


def pictures(parts: Sequence[Part], letter: str = "") -> Iterator[tuple[Picture, str]]:
    """All figures in some parts, each with the letter of its run."""
    for part in parts:
        if isinstance(part, Chart | Matrix):
            yield part, letter
        elif isinstance(part, Confusion):
            yield part.picture, letter
        elif isinstance(part, Folded | Panel | Panels):
            yield from pictures(part.parts, part.letter if isinstance(part, Panel) else letter)


@dataclass(frozen=True)
class Shown:
    """A run in the page."""

    index: int
    run: ReportedRun
    found: Material
    alone: bool  # whether the page has no other run

    @property
    def letter(self) -> str:
        """What tells it from the other runs."""
        return chr(ord("A") + self.index) if self.index < 26 else f"run {self.index + 1}"

    @property
    def name(self) -> str:
        """The recipe's name with the seed; of several runs, with its letter."""
        seed = "" if self.run.seed is None else f", seed {self.run.seed}"
        return f"{'' if self.alone else f'{self.letter} '}{self.run.name}{seed}"

    @property
    def own(self) -> list[str | Cell]:
        """The first cells of its rows in a table of all runs: of a single run none."""
        return [] if self.alone else [self.name]

    def cell(self, value: float | None, path: str, write: Callable[[float | None], str] = percent) -> Cell:
        """A table's cell with a figure of its results, and its place in ``result.json``."""
        return Cell(write(value), figure=f"{self.index}/{path}")

    def figures(self, figures: Figures, path: str) -> list[Cell]:
        """A row's cells below `FIGURE_HEADS`."""
        return [self.cell(figures.get(name), f"{path}/{name}") for name in FIGURES]

    def beside(self, parts: Sequence[Part]) -> Sequence[Part]:
        """Parts side by side; of one of several runs, whose panels are beside each other, in a column."""
        return [Panels(parts)] if self.alone and parts else parts


Runs: TypeAlias = Sequence[Shown]
#: What heads the columns of `Shown.figures`.
FIGURE_HEADS = tuple(figure.short for figure in FIGURES.values())
