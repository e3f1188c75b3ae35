"""Charts, labels and pages of reports: ticks, how series differ, colours, places, escapes."""

import re
import sys
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from ltcore.report.chart import COLORS, DASHES, INK, LINE, MARKERS, PAPER, QUIET, Axis, Chart, Series
from ltcore.report.figures import VARIABLES, Inline
from ltcore.report.labels import clip, shortened

sys.path.insert(0, str(Path(__file__).parent))
from report_pages import expanded

UNIT = Axis("x", 0, 1)


@pytest.mark.parametrize(
    "axis, expected",
    [
        (Axis("", 0, 1, percent=True), ["0", "20", "40", "60", "80", "100"]),
        (Axis("", 0, 0.153), ["0", "0.05", "0.1", "0.15"]),
        (Axis("", 4, 150, log=True), ["5", "10", "20", "50", "100"]),
        (Axis("", 1e-6, 0.2, log=True), ["1e-6", "1e-5", "1e-4", "1e-3", "0.01", "0.1"]),
        (Axis("", 80, 125, log=True), ["80", "90", "100"]),
        (Axis("", 0, 6), ["0", "1", "2", "3", "4", "5", "6"]),
        (Axis("", 0, 12_000), ["0", "2,000", "4,000", "6,000", "8,000", "10,000", "12,000"]),
        (Axis("", 0, 3, whole=True), ["0", "1", "2", "3"]),
        (Axis("", -0.5, 1.5, named=("one", "two")), ["one", "two"]),
    ],
)
def test_ticks(axis, expected):
    figure = Figure(figsize=(3.25, 3.25), layout="constrained")
    Chart("t", "s", axis, axis, []).paint(figure)
    for found in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        texts = zip(found.get_majorticklocs(), found.get_ticklabels(), strict=True)
        assert [text.get_text() for at, text in texts if axis.low <= at <= axis.high] == expected


def inlined(*content, **how):
    """A chart as SVG in a page, with its styles beside their classes."""
    inline = Inline()
    return expanded(inline(Chart(*content, **how)), {name: style for style, name in inline.styles.items()})


def test_series_differ_without_colour():
    series = [Series(str(i), [(0, 0), (1, 1)], i, line=True, dash=i) for i in range(len(MARKERS))]
    text = inlined("t", "s", UNIT, UNIT, series)
    shapes = dict(re.findall(r'<path id="(n\d+)" d="([^"]*)"', text))
    looks = set()
    for number, each in enumerate(series):
        mark = re.search(rf'class="points{number} .*?<use href="#(\w+)"', text)[1]
        (line,) = re.findall(rf"clip-path[^>]*stroke: var\(--s{each.style}\); stroke-width: 1.1[^>]*>", text)
        looks.add((shapes[mark], (re.search("stroke-dasharray: ([^;]*)", line) or [""])[0]))
    assert len(looks) == len({mark for mark, _ in looks}) == len(MARKERS) == 8
    assert len({dash for _, dash in looks}) == len(DASHES)


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(color, seen):
    """CIE L*a*b* of a colour as it is seen."""
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(xyz @ np.clip(np.array(seen) @ linear, 0, 1) / [0.9505, 1, 1.089])  # near enough for dark colours
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen", BLINDNESS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_differ_for_colour_blind_readers(scheme, seen):
    style = (files("ltcore.report") / "style.css").read_text()
    dark = [re.search(rf"--s{number}: (#\w{{6}});", style)[1] for number in range(len(MARKERS))]
    colors = COLORS if scheme == "light" else dark
    seen_as = [lab(color, BLINDNESS[seen]) for color in colors]
    for one, other in combinations(range(len(MARKERS)), 2):
        assert np.linalg.norm(seen_as[one] - seen_as[other]) > 15, (colors[one], colors[other])


def test_a_page_has_a_dark_colour_for_each_colour_of_a_drawing():
    style = "".join((files("ltcore.report") / name).read_text() for name in ("base.css", "style.css"))
    dark = "".join(re.findall(r"prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}", style, re.DOTALL))
    assert set(VARIABLES.values()) == {*(f"s{n}" for n in range(8)), "ink", "quiet", "line", "paper"}
    assert all(f"--{name}: #" in dark for name in VARIABLES.values())
    series = [Series("a", [(0.5, 0.5)], n, line=True) for n in range(8)]
    drawn = inlined("t", "s", UNIT, UNIT, series, [(0.2, "one")], labels=[(0.5, 0.5, "name")])
    assert "#000000" not in drawn and not {*COLORS, INK, QUIET, LINE, PAPER} & {*re.findall("#[0-9a-f]{6}", drawn)}
    assert all(f"var(--{name})" in drawn for name in VARIABLES.values())


def test_points_say_what_they_are_in_their_order():
    series = [
        Series("a", [(0.1, 0.1), (0.9, 0.2)], 0, ["one <b>", "two & three"]),
        Series("b", [(0.5, 0.5)], 1, line=True, marks=False),
        Series("c", [(0.3, 0.3)], 2),
        Series("d", [(0.4, 0.4), (1, 1)], 3, ["", "corner"], hollow=True),
        Series("e", [(0.6, 0.4), (0.7, 0.7), (1, 0.7)], 4, ["same", "same", "other"]),
    ]
    text = inlined("t", "s", UNIT, UNIT, series)
    parts = re.split('class="points', text)[1:]
    found = [re.findall("<title>(.*?)</title>", part) for part in parts]
    assert found == [["one &lt;b&gt;", "two &amp; three"], [], ["corner"], ["same", "other"]]
    assert [len(re.findall("<use (?![^>]*class)", part)) for part in parts] == [2, 1, 2, 3]
    assert re.search(r"<title>same</title><use [^>]*/><use [^>]*/></g><g><title>other</title>", parts[3])
    assert re.match(r'2 [^>]*style="[^"]*(fill: none|fill-opacity: 0)', parts[2])


def test_labels_on_a_map_do_not_lie_on_each_other():
    random = np.random.default_rng(0)
    places = [(float(x), float(y), f"class {n}") for n, (x, y) in enumerate(0.5 + 0.1 * random.random((20, 2)))]
    places.append((0.999, 0.999, "a name in the corner"))
    figure = Figure(figsize=(3.25, 3.25), layout="constrained")
    Chart("t", "s", Axis("", 0, 1, named=()), Axis("", 0, 1, named=()), [], labels=places).paint(figure)
    figure.draw_without_rendering()
    boxes = [each.get_window_extent() for each in figure.axes[0].texts]
    assert 12 <= len(boxes) <= 21
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    frame = figure.axes[0].get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1 for box in boxes)
    assert "a name in the corner" in [each.get_text() for each in figure.axes[0].texts]


def test_a_legend_goes_on_in_a_new_line():
    series = [Series(f"_a rather long name of a series {n}", [(0, 0), (1, 1)], n, line=True) for n in range(6)]
    figure = Figure(figsize=(3.25, 3.25), layout="constrained")
    Chart("t", "s", UNIT, UNIT, series).paint(figure)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    extent = legend.get_window_extent()
    assert 0 <= extent.x0 and extent.x1 <= figure.bbox.width and 0 <= extent.y0
    assert [each.get_text().strip("\u200b") for each in legend.get_texts()] == [each.name for each in series]
    assert extent.y1 <= figure.axes[0].get_tightbbox().y0 + 1


NAMES = st.lists(st.text("ab_ …~2", max_size=30), max_size=8)


@given(NAMES, st.integers(8, 20))
def test_names_that_differ_have_labels_that_differ(names, letters):
    found = shortened(names, letters)
    assert len(set(found)) == len(set(names)) and all(len(each) <= letters for each in found)
    assert all(label == name for name, label in zip(names, found, strict=True) if len(name) <= letters)


def test_a_label_shows_what_sets_a_name_apart():
    fields = [
        f"Apple___{what}_leaf_photographed_in_the_field" for what in ("healthy", "spot_upper", "spot_lower", "rust")
    ]
    assert shortened(fields, 16) == ["Apple__…healthy…", "Apple__…upper_l…", "Apple__…lower_l…", "Apple__…rust_le…"]
    assert shortened(["a_golden_retriever_puppy", "tabby"], 12) == ["a_gold…puppy", "tabby"]
    assert clip("abcdefgh", 5) == "ab…gh" and clip("abcde", 5) == "abcde"
