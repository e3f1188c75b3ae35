"""Charts and markup of reports: ticks, how series differ, colours, escapes."""

import json
import re
from importlib.resources import files
from itertools import combinations

import numpy as np
import pytest

from ltcore.report.chart import MARKERS, Axis, Chart, Series
from ltcore.report.markup import element, embedded, render


@pytest.mark.parametrize(
    "axis, expected",
    [
        (Axis("", 0, 1, percent=True), ["0", "20", "40", "60", "80", "100"]),
        (Axis("", 0, 0.153), ["0", "0.05", "0.1", "0.15"]),
        (Axis("", 4, 150, log=True), ["5", "10", "20", "50", "100"]),
        (Axis("", 1e-6, 0.2, log=True), ["1e-6", "1e-5", "1e-4", "1e-3", "0.01", "0.1"]),
        (Axis("", 0, 6), ["0", "1", "2", "3", "4", "5", "6"]),
        (Axis("", 0, 12_000), ["0", "2,000", "4,000", "6,000", "8,000", "10,000", "12,000"]),
        (Axis("", 0, 3, whole=True), ["0", "1", "2", "3"]),
    ],
)
def test_ticks(axis, expected):
    assert [text for _, text in axis.ticks()] == expected


def test_series_differ_without_colour():
    series = [Series(str(i), [(0, 0), (1, 1)], i, line=True, dash=i) for i in range(len(MARKERS))]
    drawn = render(Chart("t", "s", Axis("x", 0, 1), Axis("y", 0, 1), series).draw())
    groups = re.findall(r'<g class="s(\d)">(.*?)</g>', drawn)
    looks = {(re.search('stroke-dasharray="(.*?)"', part), re.search('href="(.*?)"', part)[1]) for _, part in groups}
    assert len(looks) == len(groups) == len(MARKERS) == 8


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
@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_differ_for_colour_blind_readers(scheme, seen):
    style = (files("ltcore.report") / "style.css").read_text()
    colors = [re.findall(rf"--s{number}: (#\w{{6}});", style)[scheme] for number in range(len(MARKERS))]
    seen_as = [lab(color, BLINDNESS[seen]) for color in colors]
    for one, other in combinations(range(len(MARKERS)), 2):
        assert np.linalg.norm(seen_as[one] - seen_as[other]) > 15, (colors[one], colors[other])


def test_markup_escapes():
    assert render(element("p", "a<b", element("i", "&"), "c>d", title='"')) == (
        '<p title="&quot;">a&lt;b<i>&amp;</i>c&gt;d</p>'
    )
    text = render(embedded("d", {"x": "</script>\u2028"}))
    assert json.loads(text.split(">", 1)[1].rpartition("</script>")[0]) == {"x": "</script>\u2028"}
    assert text.count("</script>") == 1
