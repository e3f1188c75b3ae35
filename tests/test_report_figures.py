"""Figures of a report as SVG files: whole, alone, and the same as in the page."""

import base64
import io
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import ltcore
from ltcore import ArraySplit, DataSplits, Method, hookimpl
from ltcore.report import write_report
from ltcore.report.chart import Axis, Chart, Series
from ltcore.report.figures import standalone
from ltcore.report.heatmap import Matrix

sys.path.insert(0, str(Path(__file__).parent))
from report_pages import Page

SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}href"


@pytest.fixture(scope="module")
def written(digits_run, tmp_path_factory):
    """The page of the digits run, and its figures by name."""
    folder = tmp_path_factory.mktemp("figures")
    figures = folder / "figures"
    assert write_report([digits_run], folder / "r.html", images=False, classes=["0", "9"], figures=figures) == []
    return Page(folder / "r.html"), {path.stem: path for path in figures.iterdir()}


def test_every_figure_of_the_page_is_a_file(written):
    page, files = written
    titles = {ElementTree.parse(path).getroot().find(f"{SVG}title").text for path in files.values()}
    assert titles == {*page.charts, "Confusion matrix"} and len(files) == len(titles)
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in files)
    assert {"frequency-training-images-of-each-class", "training-training-loss", "confusion-confusion-matrix"} <= {
        *files
    }


def test_a_figure_needs_nothing_beside_it(written):
    for path in written[1].values():
        text, root = path.read_text(), ElementTree.parse(path).getroot()
        style = root.find(f"{SVG}style").text
        assert "var(" not in style and "url(" not in style and "@" not in style
        defined = {each.get("id") for each in root.iter() if each.get("id")}
        for each in root.iter():
            for name in ("href", XLINK):
                address = each.get(name)
                assert address is None or address.startswith("data:image/png;base64,") or address[1:] in defined
        assert not re.search(r"https?://(?!www\.w3\.org/(2000/svg|1999/xlink))", text)
        assert not [each for each in root.iter() if each.tag in (f"{SVG}script", f"{SVG}foreignObject")]
        classes = {name for each in root.iter() for name in (each.get("class") or "").split()}
        assert not {each for each in classes if re.fullmatch("s[0-9]", each) and f".{each} {{" not in style}
        assert path.stat().st_size < 150_000


def test_markers_stand_where_the_page_has_them(written):
    page, files = written
    root = ElementTree.parse(files["accuracy-accuracy-on-test-images"]).getroot()
    places = [(float(each.get("x")), float(each.get("y"))) for each in root.iter(f"{SVG}use") if each.get("x")]
    wanted = [(x, y) for points in page.charts["Accuracy on test images"]["series"].values() for x, y, _ in points]
    assert places == wanted and len(places) == 20
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert {"representation", "finetune", "Accuracy on test images", "training images of the class"} <= {*texts}


def test_what_is_drawn_lies_inside(written):
    for path in written[1].values():
        root = ElementTree.parse(path).getroot()
        _, _, width, height = map(float, root.get("viewBox").split())
        assert (float(root.get("width")), float(root.get("height"))) == (width, height)
        for group in root.findall(f"{SVG}g"):
            moved = re.fullmatch(r"translate\((-?[\d.]+) (-?[\d.]+)\)", group.get("transform"))
            for mark in group.iter(f"{SVG}use"):
                x, y = (float(mark.get(name, 0)) + float(by) for name, by in zip("xy", moved.groups(), strict=True))
                assert 0 <= x < width and 26 <= y < height, path
        for text in root.findall(f"{SVG}text"):
            assert 0 <= float(text.get("y")) < height and 0 < float(text.get("x")) < width


EVIL = (
    "<script>alert(1)</script>",
    'a & b "quoted"\x07\x1b[31m',
    "</text></svg><b>",
    "ünï \u2028 \u202e ${x}" + "long" * 40,
)


class Odd(Method):
    @hookimpl
    def build_data(self):
        images = torch.arange(16 * 3 * 64).remainder(251).to(torch.uint8).view(16, 3, 8, 8)
        split = ArraySplit(images, torch.arange(4).repeat_interleave(4))
        return DataSplits(split, split, EVIL, (0.5,) * 3, (0.5,) * 3)


def test_names_are_text_wherever_they_stand(write_recipe, offer_methods, tmp_path):
    offer_methods(odd=Odd)
    run = ltcore.run(write_recipe(data="{use: odd}", diagnostics="epoch"), out=tmp_path / "runs").path
    figures, chosen = tmp_path / "figures", ["0", "1", "2", "3"]
    notes = write_report([run], tmp_path / "r.html", images=True, analysis=True, classes=chosen, figures=figures)
    page = Page(tmp_path / "r.html")
    assert notes == [] and [tag for tag, _ in page.tags if tag in ("b", "script")] == ["script", "script"]
    assert {"epochs", "decisions", "means", "features", "boundaries"} <= set(page.sections)
    said = ""
    for path in figures.iterdir():
        root = ElementTree.parse(path).getroot()  # whole XML, whatever the names hold
        allowed = "svg title desc style defs rect text g path use image".split()
        assert {each.tag.removeprefix(SVG) for each in root.iter()} <= set(allowed)
        said += "".join(root.itertext())
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", path.read_text())
    assert "<script>alert(1)" in said and 'a & b "quoted"' in said and "</text></svg><b>" in said


def test_figures_of_several_runs_carry_their_letters(digits_run, write_recipe, tmp_path):
    other = ltcore.run(write_recipe(), out=tmp_path / "runs").path
    figures = tmp_path / "figures"
    write_report([digits_run, other], tmp_path / "r.html", features=False, images=False, figures=figures)
    names = {path.stem for path in figures.iterdir()}
    assert {"confusion-confusion-matrix-a", "confusion-confusion-matrix-b", "training-training-loss"} <= names
    assert {f"stages-mean-accuracy-of-each-group-s-classes-{letter}" for letter in "ab"} <= names


def test_where_figures_cannot_go_is_one_message(cli, digits_run, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "r.html"
    cli("report", digits_run, "-o", out, "--figures", tmp_path / "file").is_one_message(2, "file: is no folder; name")
    missing = tmp_path / "no" / "figures"
    cli("report", digits_run, "-o", out, "--figures", missing).is_one_message(2, f"there is no folder {missing.parent}")
    assert not out.exists()


def test_a_file_that_is_there_is_replaced_and_the_rest_is_left(digits_run, tmp_path):
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "training-training-loss.svg").write_text("old")
    (figures / "notes.txt").write_text("mine")
    write_report([digits_run], tmp_path / "r.html", features=False, images=False, figures=figures)
    assert "<svg" in (figures / "training-training-loss.svg").read_text()
    assert (figures / "notes.txt").read_text() == "mine"


VALUES = np.array([[0.9, 0.1, 0.0], [0.25, 0.5, 0.25], [np.nan] * 3])


def cells(drawn):
    """The colours of a matrix's picture in the middle of each cell, and the texts in them."""
    image = next(each for each in drawn.iter("image") if each.get("class") == "cells")
    picture = Image.open(io.BytesIO(base64.b64decode(image.get("href").partition(",")[2]))).convert("RGB")
    step = picture.width / 3
    colors = [[picture.getpixel((int((c + 0.5) * step), int((r + 0.5) * step))) for c in range(3)] for r in range(3)]
    return colors, [each.text for each in drawn.iter("text") if "value" in each.get("class")]


def test_a_matrix_has_darker_cells_for_more(written):
    drawn = Matrix("t", "s", VALUES, ["a", "b", "c"], 0, 1).draw()
    colors, texts = cells(drawn)
    assert texts == ["90", "10", "25", "50", "25"]
    light = {value: sum(colors[r][c]) for (r, c), value in np.ndenumerate(VALUES) if not np.isnan(value)}
    assert sorted(light, key=light.get, reverse=True) == [0.0, 0.1, 0.25, 0.5, 0.9]
    assert colors[2] == [(176, 176, 176)] * 3  # nothing is known there


def test_a_matrix_lies_inside_its_picture():
    picture = Matrix("t", "s", VALUES, ["a", "b", "c" * 40], 0, 1).draw()[1]
    _, _, width, height = map(float, picture.get("viewBox").split())
    drawn = list(picture.iter("image"))
    assert len(drawn) == 2, "the cells, and the scale"
    for image in drawn:
        left, top, across, down = (float(image.get(name)) for name in ("x", "y", "width", "height"))
        assert left > 0 and top > 0 and left + across < width and top + down < height
    for text in picture.iter("text"):
        assert 0 < float(text.get("x")) < width and 0 < float(text.get("y")) < height


def test_changes_have_a_colour_for_each_direction():
    drawn = Matrix("t", "s", np.array([[-0.5, 0.5, 0.0]] * 3), ["a", "b", "c"], -0.5, 0.5, changes=True).draw()
    colors, texts = cells(drawn)
    assert texts[:2] == ["-50", "+50"]
    shrunk, grown, same = colors[0]
    assert shrunk[0] > shrunk[2] and grown[2] > grown[0] and min(same) > 240


def test_many_classes_have_one_picture_and_few_names():
    drawn = Matrix(
        "t", "s", np.random.default_rng(0).random((300, 300)), [f"class {n}" for n in range(300)], 0, 1
    ).draw()
    names = [each for each in drawn.iter("text") if "name" in each.get("class")]
    assert len(names) < 70 and len(standalone(drawn)) < 500_000


def test_a_legend_goes_on_in_a_new_line():
    series = [Series(f"a rather long name of a series {n}", [(0, 0), (1, 1)], n, line=True) for n in range(6)]
    root = ElementTree.fromstring(standalone(Chart("t", "s", Axis("x", 0, 1), Axis("y", 0, 1), series).draw()))
    heights = {float(each.get("y")) for each in root.findall(f"{SVG}text")}
    assert len(heights) >= 4 and max(heights) < float(root.get("height"))
