"""Figures: drawn by matplotlib, set into the page, and written as files that need nothing beside them."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from ltcore.errors import RecipeError
from ltcore.files.output import write_output
from ltcore.files.writing import telling
from ltcore.report.chart import COLORS, INK, LINE, PAPER, QUIET, Chart
from ltcore.report.matrix import Matrix
from ltcore.untrusted import printable

Picture: TypeAlias = Chart | Matrix
_OPTION = "--figures"
#: Inches: of a chart in the page, and of a column of a paper.
PAGE, COLUMN = 4.0, 3.25
#: Fonts are of the size of a paper's captions, at the width of a column.
_STYLE: dict[str, Any] = {
    "axes.edgecolor": QUIET,
    "axes.facecolor": "none",
    "axes.labelcolor": QUIET,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.dpi": 72,  # a pixel is a point
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
    "font.size": 7.5,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.borderpad": 0.2,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 2.4,
    "legend.labelspacing": 0.3,
    "pdf.fonttype": 42,  # whole letters, as publishers want them
    "svg.fonttype": "none",  # text is text
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    **{f"{axis}tick.color": QUIET for axis in "xy"},
    **{f"{axis}tick.labelcolor": INK for axis in "xy"},
    **{f"{axis}tick.labelsize": 7 for axis in "xy"},
}
#: Colours of a drawing by their names in style.css.
VARIABLES = {
    **{color: f"s{number}" for number, color in enumerate(COLORS)},
    INK: "ink",
    QUIET: "quiet",
    LINE: "line",
    PAPER: "paper",
}
_COLOR = re.compile("|".join(VARIABLES))
#: What XML cannot hold, whatever escapes it.
_IMPOSSIBLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: Identities that are referred to, and those that say what a group holds.
_REFERRED, _GROUP = re.compile("[mp][0-9a-f]{10}"), re.compile(r"points\d+|[xy]tick(?=_)")
_PAPER = ("fill: none", "fill: #ffffff")  # styles of what lies behind all


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


class Inline:
    """Writes pictures as SVG for one page.

    Attributes:
        styles: the class of each style that a picture has; the page must have them.
    """

    def __init__(self) -> None:
        self.styles: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._number = 0

    def __call__(self, picture: Picture) -> str:
        """A picture in the page's colours, without what a page does not need, with its points' titles."""
        self._number += 1
        read = ElementTree.fromstring(drawn(picture, "svg", PAGE, str(self._number)))
        label = f"{picture.title}. {picture.text}"
        root = Element("svg", {"viewBox": read.attrib["viewBox"], "role": "img", "aria-label": label})
        root.extend(made for child in read for made in self._lean(child))
        for number, titles in enumerate(picture.titles):
            group = root.find(f".//g[@class='points{number}']")
            if group is not None:
                _say(group, titles)
        return ElementTree.tostring(root, "unicode").replace(" />", "/>")

    def _lean(self, read: Element) -> Iterator[Element]:
        """An element without what a page does not need; a group that says nothing gives its content."""
        tag, style = read.tag.rpartition("}")[2], read.get("style", "")
        if tag in ("metadata", "title", "style") or (tag == "path" and style in _PAPER):
            return
        made = Element(tag)
        for key, value in read.items():
            name = key.rpartition("}")[2]
            if name == "id":
                if group := _GROUP.match(value):
                    made.set("class", group[0])
                elif _REFERRED.fullmatch(value):
                    made.set("id", self._short(value))
            elif name == "style":
                style = re.sub("font-family: [^;]*", "", style).strip("; ").replace("; ;", ";")
                style = _COLOR.sub(lambda found: f"var(--{VARIABLES[found[0]]})", style)
                made.set("class", self.styles.setdefault(style, f"c{len(self.styles)}"))
            elif not (name == "transform" and value.startswith("rotate(-0 ")):
                if name in "dxy":
                    value = " ".join(re.sub(r"(\.\d)\d+", r"\1", value).split())
                made.set(name, re.sub(f"(?<=#){_REFERRED.pattern}", lambda found: self._short(found[0]), value))
        made.text = (read.text or "").strip() or None
        children = [each for child in read for each in self._lean(child)]
        if tag == "g" and not made.attrib:
            yield from children
        elif children or tag != "defs":
            made.extend(children)
            yield made

    def _short(self, name: str) -> str:
        return self._names.setdefault(f"{self._number} {name}", f"n{len(self._names)}")


def _say(group: Element, titles: Sequence[str]) -> None:
    """The markers of a series with what they say; neighbours say the same once, and the style is the group's."""
    uses = group.findall("use")
    group.set("class", f"{group.get('class')} {uses[0].get('class')}")
    for use in uses:
        group.remove(use)
        del use.attrib["class"]
    for title, same in groupby(zip(titles or [""] * len(uses), uses, strict=True), lambda pair: pair[0]):
        holder = SubElement(group, "g") if title else group
        if title:
            SubElement(holder, "title").text = title
        holder.extend(use for _, use in same)


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

    They are given with the id of their section, and with the letter of one of several runs, or nothing.
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
