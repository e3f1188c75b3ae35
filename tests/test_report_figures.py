"""Figures of a report as files: whole, alone, the same as in the page, and nobody else's."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import ltcore
from ltcore import ArraySplit, DataSplits, Method, hookimpl
from ltcore.errors import RecipeError
from ltcore.report import write_report
from ltcore.report.chart import Axis, Chart, Series
from ltcore.report.figures import COLUMN, drawn, figure_places, write_figures
from ltcore.report.matrix import Matrix

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
    return Page(folder / "r.html"), {path.name: path for path in figures.iterdir()}


def test_every_figure_of_the_page_is_two_files(written):
    page, files = written
    names = {name.removesuffix(".svg") for name in files if name.endswith(".svg")}
    titles = {ElementTree.parse(files[f"{name}.svg"]).getroot().find(f"{SVG}title").text for name in names}
    assert titles == {*page.charts, "Confusion matrix"} and len(names) == len(titles)
    assert {*files} == {f"{name}.{kind}" for name in names for kind in ("svg", "pdf")}
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in names)
    assert {"frequency-training-images-of-each-class", "training-training-loss", "confusion-confusion-matrix"} <= names


def test_a_figure_needs_nothing_beside_it(written):
    for path in written[1].values():
        assert path.stat().st_size < 150_000
        if path.suffix == ".pdf":
            continue
        text, root = path.read_text(), ElementTree.parse(path).getroot()
        assert "var(" not in text and set(re.findall(r"url\((.)", text)) <= {"#"} and "@import" not in text
        defined = {each.get("id") for each in root.iter() if each.get("id")}
        for each in root.iter():
            for name in ("href", XLINK):
                address = each.get(name)
                assert address is None or address.startswith("data:image/png;base64,") or address[1:] in defined
        assert not [each for each in root.iter() if each.tag in (f"{SVG}script", f"{SVG}foreignObject")]


def test_a_figure_is_as_wide_as_a_column_with_fonts_to_be_read(written):
    for path in written[1].values():
        content = path.read_bytes()
        if path.suffix == ".pdf":
            (box,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", content)
            assert float(box[0]) == pytest.approx(72 * COLUMN) and content.startswith(b"%PDF")
            assert b"/FontFile2" in content and b"/Type3" not in content  # letters are in it, as letters
            continue
        text = content.decode()
        assert float(re.search('width="([^"]*)pt"', text)[1]) == pytest.approx(72 * COLUMN)
        assert min(float(size) for size in re.findall(r"font(?:-size)?: (?:bold )?([\d.]+)px", text)) >= 6


def test_markers_stand_where_the_page_has_them(written):
    page, files = written
    root = ElementTree.parse(files["accuracy-accuracy-on-test-images.svg"]).getroot()
    groups = {each.get("id"): each for each in root.iter(f"{SVG}g")}
    ticks = [float(next(groups[f"ytick_{n}"].iter(f"{SVG}use")).get("y")) for n in (1, 6)]  # 0 and 100 percent
    shown = page.charts["Accuracy on test images"]
    low, high = (place for place, _ in (shown["y"][0], shown["y"][-1]))
    for name in ("points0", "points1"):
        heights = [float(each.get("y")) for each in groups[name].iter(f"{SVG}use")]
        wanted = [(y - low) / (high - low) for _, y, _ in shown["series"][name]]
        assert (np.array(heights) - ticks[0]) / (ticks[1] - ticks[0]) == pytest.approx(wanted, abs=0.002)
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert {"training images of the class", "medium", "many"} <= {*texts}
    assert {"representation", "finetune"} <= {(text or "").strip("\u200b") for text in texts}


EVIL = (
    "<script>alert(1)</script>",
    'a & b "quoted"\x07\x1b[31m',
    "</text></svg><b>",
    "_ünï \u2028 \u202e ${x}$ \ufffe" + "long" * 40,
)


class Odd(Method):
    @hookimpl
    def build_data(self):
        images = torch.arange(16 * 3 * 64).remainder(251).to(torch.uint8).view(16, 3, 8, 8)
        split = ArraySplit(images, torch.arange(4).repeat_interleave(4))
        return DataSplits(split, split, EVIL, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.slow
def test_names_are_text_wherever_they_stand(write_recipe, offer_methods, tmp_path):
    offer_methods(odd=Odd)
    run = ltcore.run(write_recipe(data="{use: odd}", diagnostics="epoch"), out=tmp_path / "runs").path
    figures, chosen = tmp_path / "figures", ["0", "1", "2", "3"]
    notes = write_report([run], tmp_path / "r.html", images=True, analysis=True, classes=chosen, figures=figures)
    page = Page(tmp_path / "r.html")
    assert notes == [] and [tag for tag, _ in page.tags if tag in ("b", "script")] == ["script", "script"]
    assert {"epochs", "decisions", "means", "features", "boundaries"} <= set(page.sections)
    said = ""
    for path in figures.glob("*.svg"):
        root = ElementTree.parse(path).getroot()  # whole XML, whatever the names hold
        drawn = {each.tag.removeprefix(SVG) for each in root.iter() if each.tag.startswith(SVG)}
        assert drawn <= set("svg title metadata defs style g path use text clipPath rect image".split())
        said += "".join(root.itertext())
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", path.read_text())
    assert "<script" in said and "a & b" in said and "</text></svg><b>" in said
    assert len(list(figures.glob("*.pdf"))) == len(list(figures.glob("*.svg"))) > 10


def test_figures_of_several_runs_carry_their_letters(cli, digits_run, write_recipe, tmp_path):
    other = ltcore.run(write_recipe(), out=tmp_path / "runs").path
    figures = tmp_path / "figures"
    words = ("-o", tmp_path / "r.html", "--no-features", "--no-images", "--figures", figures)
    shown = cli("report", digits_run, other, *words)
    assert shown.code == 0 and "every figure as SVG and PDF" in shown.out, shown
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


def test_a_file_of_ours_is_replaced_and_no_other(tmp_path):
    axis, name = Axis("", 0, 1), "a-name"
    pictures = [[(name, Chart("t", "s", axis, axis, [Series("a", [(x, 0.5)], 0)]))] for x in (0.2, 0.7)]
    (tmp_path / "notes.svg").write_text("mine")
    contents = []
    for each in (*pictures, pictures[0]):  # what was written before is replaced
        write_figures(figure_places(tmp_path, each))
        contents.append([(tmp_path / f"{name}.{kind}").read_bytes() for kind in ("svg", "pdf")])
    assert contents[0] == contents[2] and contents[0][0] != contents[1][0] and contents[0][1] != contents[1][1]
    assert {path.name for path in tmp_path.iterdir()} == {"notes.svg", f"{name}.svg", f"{name}.pdf"}
    for kind, content in zip(("svg", "pdf"), contents[2], strict=True):
        path = tmp_path / f"{name}.{kind}"
        for changed in (content.replace(b"0", b"1", 1), content + b" ", b"", b"mine"):
            path.write_bytes(changed)
            with pytest.raises(
                RecipeError, match=f"{path.name} is there, and is no figure as ltcore wrote it; move it"
            ):
                figure_places(tmp_path, pictures[0])
            assert path.read_bytes() == changed
        path.unlink()
        path.symlink_to(tmp_path / "notes.svg")
        with pytest.raises(RecipeError, match="is there"):
            figure_places(tmp_path, pictures[0])
        path.unlink()
    assert (tmp_path / "notes.svg").read_text() == "mine"


def test_nothing_is_written_where_a_figure_is_not_ours(cli, digits_run, tmp_path):
    out, figures = tmp_path / "r.html", tmp_path / "figures"
    figures.mkdir()
    (figures / "training-training-loss.pdf").write_text("mine")
    told = cli("report", digits_run, "-o", out, "--no-features", "--no-images", "--figures", figures)
    told.is_one_message(
        2, f"--figures {figures}: training-training-loss.pdf is there, and is no figure as ltcore wrote"
    )
    assert not out.exists() and [path.read_text() for path in figures.iterdir()] == ["mine"]


VALUES = np.array([[0.9, 0.1, 0.0], [0.25, 0.5, 0.25], [np.nan] * 3])


def cells(matrix):
    """The colours of a matrix's picture near a corner of each cell, [C, C, 3], and the texts by their cells."""
    figure = Figure(figsize=(4, 4), dpi=100, layout="constrained")
    matrix.paint(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels, axes, size = np.asarray(canvas.buffer_rgba())[::-1, :, :3], figure.axes[0], len(matrix.names)
    colors = np.zeros((size, size, 3), int)
    for row, column in np.ndindex(size, size):
        x, y = axes.transData.transform((column - 0.4, row - 0.4))
        colors[row, column] = pixels[int(y), int(x)]
    texts = {(each.get_position()[1], each.get_position()[0]): each.get_text() for each in axes.texts}
    return colors, {place: text for place, text in texts.items() if text}


def test_a_matrix_has_darker_cells_for_more():
    colors, texts = cells(Matrix("t", "s", VALUES, ["a", "b", "c"], 0, 1))
    assert texts == {(0, 0): "90", (0, 1): "10", (1, 0): "25", (1, 1): "50", (1, 2): "25"}
    light = {float(value): colors[place].sum() for place, value in np.ndenumerate(VALUES) if not np.isnan(value)}
    assert sorted(light, key=light.get, reverse=True) == [0.0, 0.1, 0.25, 0.5, 0.9]
    assert (colors[2] == 176).all()  # nothing is known there


def test_changes_have_a_colour_for_each_direction():
    colors, texts = cells(Matrix("t", "s", np.array([[-0.5, 0.5, 0.0]] * 3), list("abc"), -0.5, 0.5, changes=True))
    assert (texts[0, 0], texts[0, 1]) == ("-50", "+50")
    shrunk, grown, same = colors[0]
    assert shrunk[0] > shrunk[2] and grown[2] > grown[0] and min(same) > 240


def test_names_of_a_matrix_differ_and_lie_inside():
    names = [f"{kind}___the_same_long_name_of_a_class" for kind in ("leaf_a", "leaf_b", "c")]
    figure = Figure(figsize=(COLUMN, COLUMN), layout="constrained")
    Matrix("t", "s", VALUES, names, 0, 1).paint(figure)
    figure.draw_without_rendering()
    labels = [*figure.axes[0].get_xticklabels(), *figure.axes[0].get_yticklabels()]
    assert len({each.get_text() for each in labels}) == 3 and len(labels) == 6
    for each in labels:
        box = each.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height + 1
    assert figure.axes[0].get_window_extent().width > 0.3 * figure.bbox.width


def test_many_classes_have_one_picture_and_few_names():
    matrix = Matrix("t", "s", np.random.default_rng(0).random((300, 300)), [f"class {n}" for n in range(300)], 0, 1)
    text = drawn(matrix, "svg").decode()
    assert 20 < len(re.findall("<text", text)) < 70 and len(text) < 500_000
