"""Figures: drawn by matplotlib, set into the page, and written as files that need nothing beside them."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from ltcore.errors import RecipeError
from ltcore.files.output import write_output
from ltcore.files.writing import telling
from ltcore.report import chart
from ltcore.untrusted import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OPTION = "--figures"
#: Inches: of a chart in the page, and of a column of a paper.
PAGE, COLUMN = 4.0, 3.25
#: Fonts are of the size of a paper's captions, at the width of a column.
_STYLE: dict[str, Any] = {
    "axes.edgecolor": chart.QUIET,
    "axes.facecolor": "none",
    "axes.labelcolor": chart.QUIET,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
    "font.size": 7.5,
    "grid.color": chart.LINE,
    "grid.linewidth": 0.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.borderpad": 0.2,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 2.4,
    "legend.labelspacing": 0.3,
    "pdf.fonttype": 42,  # whole letters, as publishers want them
    "svg.fonttype": "none",  # text is text
    "text.color": chart.INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "xtick.color": chart.QUIET,
    "xtick.labelcolor": chart.INK,
    "xtick.labelsize": 7,
    "ytick.color": chart.QUIET,
    "ytick.labelcolor": chart.INK,
    "ytick.labelsize": 7,
}
#: Colours of a drawing by their names in style.css.
VARIABLES = {
    **{color: f"s{number}" for number, color in enumerate(chart.COLORS)},
    chart.INK: "ink",
    chart.QUIET: "quiet",
    chart.LINE: "line",
    chart.PAPER: "paper",
}
#: What XML cannot hold, whatever escapes it.
_IMPOSSIBLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAG = re.compile("<[a-zA-Z][^>]*>")
_NUMBERS = re.compile(r' [dxy]="[^"]*"')
#: Identities that nothing refers to; those of ticks become classes, others go.
_TICK, _UNUSED = re.compile(r' id="([xy]tick)_\d+"'), re.compile(r' id="(?!(?:[mp][0-9a-f]{10}|points\d+)")[^"]*"')
_COLOR = re.compile("|".join(VARIABLES))
_WHITE = "fill: #ffffff"  # first of the whole figure, which lies on the page's paper


class Picture(Protocol):
    """What can be drawn.

    Attributes:
        title: what it shows, in a few words.
        text: what there is to see, for those who cannot.
        titles: for each group ``points<n>`` of its SVG, what its points say when they are pointed at.
    """

    @property
    def title(self) -> str: ...  # noqa: D102

    @property
    def text(self) -> str: ...  # noqa: D102

    @property
    def titles(self) -> Sequence[Sequence[str]]: ...  # noqa: D102

    def paint(self, figure: Figure) -> None:
        """Draw it; the figure's width stays, and its height is the picture's to choose."""


def drawn(picture: Picture, kind: Literal["svg", "pdf"], width: float = COLUMN, name: str = "figure") -> bytes:
    """A picture as a file, the same each time.

    Args:
        picture: what is drawn.
        kind: of the file.
        width: in inches.
        name: from which the identities in an SVG are made, so that they differ from those of other names.
    """
    import matplotlib
    from matplotlib.figure import Figure

    title, text = printable(picture.title), printable(picture.text)
    about = {"svg": {"Title": title, "Description": text, "Date": None}, "pdf": {"Title": title, "CreationDate": None}}
    held = io.BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a browser has the letter
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, _STYLE | {"svg.hashsalt": name}))
        figure = Figure(figsize=(width, width), layout="constrained")
        picture.paint(figure)
        figure.savefig(held, format=kind, metadata=about[kind])
    if kind == "pdf":
        return held.getvalue()
    return _IMPOSSIBLE.sub("\ufffd", held.getvalue().decode()).encode()


def inline(picture: Picture, name: str) -> str:
    """A picture as SVG in a page: in the page's colours, without what a page does not need, with its points' titles."""
    text = drawn(picture, "svg", PAGE, name).decode()
    text = re.sub(
        "<metadata>.*?</metadata>|<title>.*?</title>|<defs>\\s*<style.*?</style>\\s*</defs>", "", text, flags=re.DOTALL
    )
    text = re.sub(r"\s*\n\s*", "\n", text[text.index("<svg") :]).replace(">\n<", "><").replace("\n", " ")
    text = _TAG.sub(lambda found: _lean(found[0]), text.replace(_WHITE, "fill: none", 1))
    box = re.search(r'viewBox="[^"]*"', text)
    label = escape(f"{picture.title}. {picture.text}")
    assert box
    text = f'<svg {box[0]} role="img" aria-label="{label}">{text.partition(">")[2]}'
    for number, titles in enumerate(picture.titles):
        text = _titled(text, number, titles)
    return text


def _lean(tag: str) -> str:
    """A tag without what a page does not need."""
    tag = _UNUSED.sub("", _TICK.sub(r' class="\1"', tag)).replace("; font-family: 'DejaVu Sans', ", ";")
    tag = tag.replace("'Helvetica', 'Arial', sans-serif", "").replace(' transform="rotate(-0 ', ' data-0="(')
    tag = re.sub(' data-0="[^"]*"', "", tag)
    tag = _NUMBERS.sub(lambda found: re.sub(r"(\d\.\d)\d+", r"\1", found[0]), tag)
    return _COLOR.sub(lambda found: f"var(--{VARIABLES[found[0]]})", tag)


def _titled(text: str, number: int, titles: Sequence[str]) -> str:
    """The markers of a series with what they say; their style is written once."""
    before, _, after = text.partition(f' id="points{number}"')
    uses = re.findall(r"<use [^>]*/>", after.partition("</g></g>")[0])
    if not uses:
        return text
    style = re.search(r' style="[^"]*"', uses[0])
    words = iter(titles or [""] * len(uses))
    assert style and (not titles or len(titles) == len(uses))

    def one(found: re.Match[str]) -> str:
        use, said = found[0].replace(style[0], ""), next(words)
        return f"{use[:-2]}><title>{escape(said)}</title></use>" if said else use

    return f'{before} class="points{number}"{style[0]}{re.sub("<use [^>]*/>", one, after, count=len(uses))}'


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


def figure_places(folder: Path, pictures: Sequence[tuple[str, Picture]]) -> dict[Path, tuple[str, Picture]]:
    """Where each picture goes, as SVG and as PDF, with its name; a file of such a name that we wrote is replaced.

    Raises:
        RecipeError: a file of such a name is not ours, or was changed since.
        RunError: it cannot be read.
    """
    places = {folder / f"{name}.{kind}": (name, picture) for name, picture in pictures for kind in ("svg", "pdf")}
    for path in places:
        if path.is_symlink() or (path.exists() and not _ours(path)):
            raise RecipeError(
                f"{_OPTION} {folder}: {path.name} is there, and is no figure as ltcore wrote it; move it away, or name "
                "another folder"
            )
    return places


def write_figures(places: Mapping[Path, tuple[str, Picture]]) -> None:
    """Write pictures to what `figure_places` gives.

    Raises:
        RunError: one cannot be written.
    """
    for path, (name, picture) in places.items():
        kind: Literal["svg", "pdf"] = "svg" if path.suffix == ".svg" else "pdf"
        write_output(path, signed(drawn(picture, kind, name=name), kind), _OPTION)


def named(pictures: Sequence[tuple[str, Picture, str]]) -> Iterator[tuple[str, Picture]]:
    """Pictures with names of small letters, digits and hyphens.

    Args:
        pictures: the id of a section, a picture of it, and the letter of one of several runs, or nothing.
    """
    used: dict[str, int] = {}
    for section, picture, letter in pictures:
        words = picture.title.partition(" (")[0].lower()  # without a figure that another run has not
        title = re.sub("[^a-z0-9]+", "-", words).strip("-")[:60].strip("-")
        name = "-".join(part for part in (section, title, letter.lower().replace(" ", "-")) if part)
        used[name] = used.get(name, 0) + 1
        yield (name if used[name] == 1 else f"{name}-{used[name]}"), picture


def signed(content: bytes, kind: str) -> bytes:
    """A file's content, and a comment in the file's language by which we know it again while nobody has changed it."""
    digest = hashlib.sha256(content).hexdigest()
    return content + (f"<!-- ltcore {digest} -->\n" if kind == "svg" else f"% ltcore {digest}\n").encode()


def _ours(path: Path) -> bool:
    kind = path.suffix[1:]
    with telling(path, f"or choose another place with {_OPTION}"):
        content = path.read_bytes()
    return signed(content[: len(content) - len(signed(b"", kind))], kind) == content
