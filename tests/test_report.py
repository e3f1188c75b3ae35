"""The page of ``ltcore report``: every figure on it is the run's own, whatever its names and however far it is."""

import base64
import csv
import io
import json
import re
import shutil
import statistics
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ltcore
from ltcore import ArraySplit, DataSplits, Method, hookimpl
from ltcore.data.transforms import ImageTransform
from ltcore.errors import RunError
from ltcore.evaluation import metrics
from ltcore.report import classes, maps, material, sampling
from ltcore.report.blocks import Shown
from ltcore.report.chart import Chart
from ltcore.report.data import ReportedRun, read_run
from ltcore.report.labels import percent
from ltcore.report.thumbnails import thumbnail

sys.path.insert(0, str(Path(__file__).parent))
from report_pages import Page, drawn_lines, report, scale, value_at


@pytest.fixture(scope="module")
def digits_page(digits_run, tmp_path_factory):
    return report([digits_run], tmp_path_factory.mktemp("report") / "report.html", features=True, images=True)


@pytest.fixture
def train(write_recipe, tmp_path):
    """Train a small recipe; arguments as for `write_recipe`."""

    def run(name="r", set=(), **parts):
        return ltcore.run(write_recipe(name, **parts), set=set, out=tmp_path / "runs").path

    return run


SECTIONS = (
    "overview configuration frequency accuracy stages training confusion reliability diagnostics features hardest "
    "errors classes"
).split()


def test_every_figure_is_the_results(digits_page, digits_run):
    page, notes = digits_page
    result = json.loads((digits_run / "result.json").read_text())
    assert notes == [] and page.sections == SECTIONS
    assert page.data["runs"][0]["result"] == result
    shown = set()
    for path, text in page.figures.items():
        run, _, place = path.partition("/")
        value = value_at(result, place)
        digits = "classifier_norm" in place or "feature_deviation" in place
        assert run == "0" and text == (f"{value:.3g}" if digits else percent(value)), path
        shown.add(place.rpartition("/")[0] if place.rpartition("/")[2].isdigit() else place)
    for place in ("after_calibration", "stages/0/test", "stages/1/test"):
        names = set(result["after_calibration"]) - {"per_class_accuracy"}
        assert {f"{place}/{name}" for name in names} <= shown
        assert f"{place}/per_class_accuracy" in shown or place == "after_calibration"
    named = {f"stages/{stage}/diagnostics/{name}" for stage in (0, 1) for name in ("classifier_norm", "train_accuracy")}
    assert named | {"stages/0/diagnostics/feature_deviation", "stages/1/diagnostics/feature_deviation"} <= shown


def test_embedded_data_is_what_the_run_wrote(digits_page, digits_run):
    run, result = digits_page[0].data["runs"][0], json.loads((digits_run / "result.json").read_text())
    assert run["epochs"] == [json.loads(line) for line in (digits_run / "metrics.jsonl").read_text().splitlines()]
    saved = ltcore.load(digits_run)
    said = saved.calibrated_logits.argmax(1)
    matrix = np.zeros((10, 10), int)
    for target, predicted, images in run["confusion"]:
        matrix[target, predicted] = images
    assert matrix.sum() == len(said)
    assert (matrix.diagonal() / matrix.sum(1)).tolist() == result["after_calibration"]["per_class_accuracy"]
    assert all(matrix[t, p] == ((saved.targets == t) & (said == p)).sum() for t in range(10) for p in range(10))
    bins = run["reliability"]["after"]
    gaps = np.abs(np.array(bins["right"]) - bins["confidence"]).sum() / sum(bins["samples"])
    assert len(bins["samples"]) == metrics.ECE_BINS
    assert gaps == pytest.approx(result["after_calibration"]["ece"], abs=1e-12)


def test_markers_stand_where_the_values_are(digits_page, digits_run):
    result = json.loads((digits_run / "result.json").read_text())
    charts = digits_page[0].charts
    order = sorted(range(10), key=lambda label: -result["class_counts"][label])
    for caption, series, place, logarithmic in (
        ("Accuracy on test images", "points1", "stages/1/test/per_class_accuracy", True),
        ("Accuracy on test images", "points0", "stages/0/test/per_class_accuracy", True),
        ("Accuracy on training images", "points1", "stages/1/diagnostics/train_accuracy", True),
        ("Norm of the classifier's row of each class", "points1", "stages/1/diagnostics/classifier_norm", True),
        (
            "Feature deviation between training and test images",
            "points1",
            "stages/1/diagnostics/feature_deviation",
            True,
        ),
    ):
        chart = charts[caption]
        x, y = scale(chart["x"], logarithmic), scale(chart["y"])
        values = value_at(result, place)
        for label, (at, height, title) in zip(order, chart["series"][series], strict=True):
            count = result["class_counts"][label]
            assert x(at) == pytest.approx(count, rel=0.01)
            assert y(height) == pytest.approx(values[label], abs=0.002 * max(1, *values))
            assert title.startswith(f"{result['class_names'][label]}: {count} images, ")
    groups = charts["Mean accuracy of each group's classes"]
    y = scale(groups["y"])
    for series, name in (("points0", "many"), ("points1", "medium"), ("points2", "few")):
        heights = [y(height) for _, height, _ in groups["series"][series]]
        assert heights == pytest.approx([stage["test"][name] for stage in result["stages"]], abs=0.002)


def test_reliability_is_drawn_over_all_confidences(digits_page):
    page = digits_page[0]
    outcome = page.data["runs"][0]["reliability"]["after"]
    for caption, values in (
        ("Accuracy by confidence", [r / n for n, r in zip(outcome["samples"], outcome["right"], strict=True) if n]),
        ("Test images by confidence", [n / sum(outcome["samples"]) for n in outcome["samples"]]),
    ):
        chart = page.charts[caption]
        for axis in "xy":
            assert {min(value for _, value in chart[axis]), max(value for _, value in chart[axis])} == {0, 1}
        y = scale(chart["y"])
        drawn = [y(height) for _, height, _ in chart["series"]["points0"]]
        assert drawn == pytest.approx(values, abs=0.002)


def test_class_frequency_is_drawn_at_the_ranks_from_one(digits_page, digits_run):
    page, caption = digits_page[0], "Training images of each class"
    counts = sorted(json.loads((digits_run / "result.json").read_text())["class_counts"], reverse=True)
    (line,) = drawn_lines(page, caption)
    chart = page.charts[caption]
    x, y = scale(chart["x"]), scale(chart["y"], logarithmic=True)
    marks = sorted((x(at), y(height)) for series in chart["series"].values() for at, height, _ in series)
    assert [at for at, _ in line] == pytest.approx(range(1, 11), abs=0.05)
    assert [at for at, _ in marks] == pytest.approx(range(1, 11), abs=0.05)
    assert [count for _, count in marks] == pytest.approx(counts, rel=0.02)


def test_hardest_classes_with_their_images(digits_page, digits_run):
    page, run = digits_page[0], read_run(digits_run)
    found = material.hardest(run)
    accuracy = run.result["after_calibration"]["per_class_accuracy"]
    assert [accuracy[each.label] for each in found] == sorted(a for a in accuracy if a < 1)[: material.CLASSES]
    said, targets = run.predictions.after.predictions, run.predictions.targets
    for each in found:
        assert each.right == ((targets == each.label) & (said == each.label)).sum()
        assert sum(images for _, images in each.taken_for) == each.images - each.right
        assert [said[example.index] for example in each.examples] == [example.said for example in each.examples]
        first = [example.said for example in each.examples][: len(each.taken_for)]
        assert first == [label for label, _ in each.taken_for][: len(first)]
    assert len(page.images) == sum(len(each.examples) for each in found)
    assert all(source.startswith("data:image/png;base64,") for source in page.images)


def test_what_is_not_named_of_a_hard_class_is_counted(digits_run):
    run = read_run(digits_run)
    mistaken = [(label, 9 - label) for label in range(5)]
    few, many = (material.HardClass(9, 40, 5, mistaken[:number], []) for number in (3, 5))
    assert few.said(run.names) == "0 (9), 1 (8), 2 (7)"
    assert many.said(run.names) == "0 (9), 1 (8), 2 (7) and 2 more"


def test_the_surest_errors_are_those_of_the_list(digits_page, digits_run):
    page = digits_page[0]
    with (digits_run / "errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    number, surest = read_run(digits_run).predictions.errors
    assert number == len(rows) and len(surest) == min(20, number) > 1
    names = ltcore.load(digits_run).class_names
    for row, each in zip(rows, surest, strict=False):
        assert (row["image"], row["class"], row["predicted"]) == (each.name, names[each.label], names[each.said])
        assert (row["probability"], row["class_probability"]) == (f"{each.probability:.6f}", f"{each.own:.6f}")
    assert f"{len(surest)} of {number:,} errors; errors.csv in the run's directory has all" in page.text


def test_images_and_features_can_be_left_out(digits_run, tmp_path, monkeypatch):
    def refuse(self):
        raise AssertionError("the data was read")

    monkeypatch.setattr(ltcore.SavedRun, "read_data", refuse)
    page, notes = report([digits_run], tmp_path / "report.html")
    assert page.sections == [name for name in SECTIONS if name != "features"] and page.images == [] and notes == []


def test_names_are_text_wherever_they_stand(train, offer_methods, tmp_path):
    evil = ("<script>alert(1)</script>", "a & b \"quoted\" 'so'", "</script><b>", "${x} $x \u2028 ünï")

    class Odd(Method):
        @hookimpl
        def build_data(self):
            images = torch.arange(16 * 3 * 64).remainder(251).to(torch.uint8).view(16, 3, 8, 8)
            split = ArraySplit(images, torch.arange(4).repeat_interleave(4))
            return DataSplits(split, split, evil, (0.5,) * 3, (0.5,) * 3)

    offer_methods(odd=Odd)
    path = train(data="{use: odd}")
    page, _ = report([path], tmp_path / "report.html", images=True)
    assert page.data["runs"][0]["result"]["class_names"] == list(evil)
    assert [tag for tag, _ in page.tags if tag in ("b", "script")] == ["script", "script"]
    assert all(name in page.text for name in evil)
    assert page.images


def test_the_page_needs_no_network(digits_page):
    for tag, attributes in digits_page[0].tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:")), (tag, address)
    style = digits_page[0].raw.split("<style>")[1].split("</style>")[0]
    script = digits_page[0].raw.rpartition("<script>")[2]
    assert "url(" not in style and "@import" not in style
    assert set(re.findall(r"url\((.)", digits_page[0].raw)) == {"#"}
    assert not re.search(r"fetch|XMLHttpRequest|import|WebSocket|https?:", script)


def test_what_helps_readers_without_a_mouse_or_a_screen(digits_page):
    tags = digits_page[0].tags
    links = [found["href"][1:] for tag, found in tags if tag == "a"]
    identities = {found["id"] for _, found in tags if "id" in found}
    assert links[0] == "main" and links[1:] == SECTIONS and set(links) <= identities
    assert all(found["alt"] for tag, found in tags if tag == "img")
    assert len(identities) == sum("id" in found for _, found in tags), "no identity is there twice"
    pictures = [found for tag, found in tags if tag == "svg"]
    assert pictures and all(found["role"] == "img" and len(found["aria-label"]) > 20 for found in pictures)
    assert all(found["aria-label"] for _, found in tags if "tabindex" in found and found["tabindex"] == "0")
    headings = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    unfolded = re.findall(r"<details open[^>]*><summary>(.*?)</summary>", digits_page[0].raw)
    assert unfolded == ["Plan"] and digits_page[0].raw.count("<details") > 5
    assert headings[0] == 1 and all(after - before <= 1 for before, after in pairwise(headings))


def test_runs_side_by_side(digits_run, train, tmp_path):
    other = train(methods="{tau_norm: {}}", calibrate="[tau_norm]")
    page, _ = report([digits_run, other], tmp_path / "report.html")
    results = [json.loads((path / "result.json").read_text()) for path in (digits_run, other)]
    assert [run["result"] for run in page.data["runs"]] == results
    assert {path[0] for path in page.figures} == {"0", "1"}
    for path, text in page.figures.items():
        value = value_at(results, path)
        assert text in (percent(value), "–" if value is None else f"{value:.3g}"), path  # noqa: RUF001
    for place in ("before_calibration", "after_calibration"):
        assert page.figures[f"1/{place}/ece"] == percent(results[1][place]["ece"])
    assert set(page.charts["Accuracy on test images"]["series"]) == {"points0", "points1"}
    assert len(page.charts["Accuracy on test images"]["series"]["points1"]) == 4
    assert "A digits_lt_ofa_focal, seed 0" in page.text and "B r, seed 0" in page.text


def test_a_selection_is_shown(train, tmp_path):
    chosen = {"options": {"methods.tau_norm.options.tau": [0.0, 1.0]}, "holdout": 1}
    page, _ = report([train(methods="{tau_norm: {}}", calibrate="[tau_norm]", select=chosen)], tmp_path / "report.html")
    candidates = page.data["runs"][0]["result"]["selection"]["candidates"]
    for place, candidate in enumerate(candidates):
        assert page.figures[f"0/selection/candidates/{place}/score"] == percent(candidate["score"])


def test_diagnostics_of_each_epoch_and_none(train, tmp_path):
    with_them, _ = report([train(diagnostics="epoch")], tmp_path / "report.html")
    assert "Mean accuracy of the classes" in with_them.charts
    without, _ = report([train(diagnostics="off")], tmp_path / "report.html")
    assert not {"Mean accuracy of the classes", "Accuracy on training images"} & set(without.charts)
    assert "diagnostics" in with_them.sections and "diagnostics" not in without.sections


class Levels(Method):
    """Logs the epoch, and for each class its number plus the epoch; for class 0 nothing."""

    def __init__(self, options=None):
        super().__init__(options)
        self.epoch, self.classes = 0.0, 0

    @hookimpl
    def on_run_start(self, context):
        self.classes = context.num_classes

    @hookimpl
    def on_epoch_end(self):
        self.epoch += 1

    def logged(self):
        levels = torch.arange(self.classes) + self.epoch
        levels[0] = torch.nan
        return {"level": levels, "epoch": torch.tensor(self.epoch), "nothing": torch.full((self.classes,), torch.nan)}


LOGGING = """
  - {name: one, epochs: 1, batch_size: 8, optimizer: {lr: 0.01}}
  - {name: two, epochs: 3, batch_size: 8, methods: [levels], optimizer: {lr: 0.01}}"""


def test_what_methods_logged_is_drawn_class_by_class(train, offer_methods, tmp_path):
    offer_methods(levels=Levels)
    page, _ = report([train(methods="{levels: {}}", stages=LOGGING)], tmp_path / "report.html")
    assert page.sections.index("methods") == page.sections.index("training") + 1
    assert "levels: nothing" not in page.charts, "nothing but NaN"
    lines = drawn_lines(page, "levels: level")
    for label, line in zip((1, 2, 3), lines, strict=True):  # sorted by their images, as the labels are
        wanted = [(epoch + 2, label + epoch) for epoch in range(3)]  # stage one had an epoch
        assert np.array(line) == pytest.approx(np.array(wanted), abs=0.03)
    (line,) = drawn_lines(page, "levels: epoch")
    assert np.array(line) == pytest.approx(np.array([(2, 0), (3, 1), (4, 2)]), abs=0.03)
    values = page.text.split("Values of levels: level")[1].partition("Values of")[0]
    assert re.search(r"two, epoch 2\s*2\s*3\s*4\s*two, epoch 3\s*3\s*4\s*5", values)
    assert "methods" not in report([train(name="plain")], tmp_path / "plain.html")[0].sections


def test_many_classes_are_drawn_in_tenths(train, offer_methods, tmp_path):
    offer_methods(levels=Levels)
    counts = [30 - label for label in range(20)]
    data = {"use": "synthetic", "options": {"class_counts": counts, "image_size": 8, "test_per_class": 1}}
    page, _ = report([train(methods="{levels: {}}", stages=LOGGING, data=data)], tmp_path / "report.html")
    lines = drawn_lines(page, "levels: level")
    assert len(lines) == 10
    assert [line[0][1] for line in lines] == pytest.approx([1, *(2 * tenth + 0.5 for tenth in range(1, 10))], abs=0.1)
    assert "2 classes (12 to 11)" in page.text


def test_a_line_joins_the_means_of_the_classes_tenths(monkeypatch, tmp_path):
    drawn = []

    monkeypatch.setattr(classes, "Chart", lambda *content, **how: drawn.append(Chart(*content, **how)) or drawn[-1])
    for number, lines in ((30, 0), (40, 10)):
        counts, right = [500 - 3 * label for label in range(number)], [label / number for label in range(number)]
        figures = {"per_class_accuracy": right}
        result = {"class_counts": counts, "class_names": list(map(str, counts)), "calibration": []}
        run = ReportedRun(tmp_path, "r", 0, "", "", result, [{"name": "one", "test": figures}], [], {}, None)
        text = classes.accuracy([Shown(0, run, material.Material(), True)]).text
        (series,) = drawn.pop().series
        assert (len(series.points), len(series.trend)) == (number, lines)
        assert ("lines are the means of the classes' tenths" in text) == bool(lines)
    tenths = [slice(first, first + 4) for first in range(0, 40, 4)]
    assert series.trend == pytest.approx(
        np.array([(statistics.geometric_mean(counts[tenth]), statistics.mean(right[tenth])) for tenth in tenths])
    )


TWO_STAGES = """
  - {name: one, epochs: 2, batch_size: 8, optimizer: {lr: 0.01}}
  - {name: two, epochs: 2, batch_size: 8, optimizer: {lr: 0.01}}"""


def test_a_run_that_has_not_ended(train, make_run, digits_run, tmp_path):
    class Stopped(Exception):
        pass

    run = make_run(stages=TWO_STAGES)
    shutil.copy(digits_run / "recipe.yaml", run.directory.path / "recipe.yaml")
    append, lines = run.directory.append_metrics, []

    def stop(line):
        if len(lines) == 3:
            raise Stopped
        lines.append(line)
        return append(line)

    run.directory.append_metrics = stop
    with pytest.raises(Stopped):
        run.execute()
    path = run.directory.path
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "two", "ep')  # what a running process has written so far
    page, notes = report([path], tmp_path / "report.html", features=True, images=True)
    assert notes == [] and page.data["runs"][0]["epochs"] == lines
    assert "not ended: 3 epochs and 1 stage done" in page.text
    assert page.sections == ["overview", "configuration", "stages", "training"]
    stage = page.data["runs"][0]["stages"][0]
    assert page.figures["0/stages/0/test/top1"] == percent(stage["test"]["top1"])
    both, _ = report([path, digits_run], tmp_path / "both.html", images=True)
    assert both.sections == [name for name in SECTIONS if name != "features"]
    assert "The run has not ended." in both.text
    legend = both.raw.split("<figcaption>Accuracy on test images</figcaption>")[1].partition("</figure>")[0]
    assert "B digits_lt_ofa_focal, seed 0</text>" in legend  # which of the two it is, though it is alone


def test_what_cannot_be_shown_is_one_message(cli, digits_run, tmp_path):
    out = tmp_path / "report.html"
    cli("report", tmp_path / "none", "-o", out).is_one_message(2, "none is no run directory", "runs/NAME/DATE-seed0")
    above = digits_run.parent
    cli("report", above, "-o", out).is_one_message(2, f"{above} is no run directory", f"such as {digits_run}")
    cli("report", above.parent, "-o", out).is_one_message(2, "is no run directory", f"such as {digits_run}")
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(digits_run / "recipe.yaml", begun)
    cli("report", digits_run, begun, "-o", out).is_one_message(2, f"{begun}: ", "not ended its first epoch")
    (begun / "result.json").write_text("{")
    cli("report", begun, "-o", out).is_one_message(1, f"{begun / 'result.json'} is damaged")
    assert not out.exists()
    page = tmp_path / "no" / "r.html"
    cli("report", digits_run, "-o", page).is_one_message(2, f"-o {page}: there is no folder {page.parent}; make it")
    cli("report", digits_run, "-o", tmp_path).is_one_message(2, f"-o {tmp_path}: is a folder and no file; name another")
    cli("report").is_one_message(2, "RUN")


def test_a_run_is_shown_without_its_data_and_its_plugins(cli, digits_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(digits_run, copy)
    recipe = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(recipe.replace("use: digits_lt", "use: npz\n  options: {path: gone.npz}", 1))
    shown = cli("report", copy, "-o", tmp_path / "report.html")
    assert shown.code == 0 and "note: " in shown.out and "the data cannot be read" in shown.out, shown
    page = Page(tmp_path / "report.html")
    assert page.sections == [name for name in SECTIONS if name != "features"] and page.images == []
    for changed, said in (("focal", "The plan cannot be made here: "), ("epochs", "The recipe cannot be read here: ")):
        (copy / "recipe.yaml").write_text(recipe.replace(changed, "gone"))
        shown = cli("report", copy, "-o", tmp_path / "report.html", "--no-features", "--no-images")
        assert shown.code == 0 and "report.html (" in shown.out
        page = Page(tmp_path / "report.html")
        assert said in page.text and "ltcore report: digits_lt_ofa_focal" in page.text


def test_data_that_has_changed_gives_no_images(digits_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(digits_run, copy)
    with np.load(copy / "predictions.npz") as stored:
        arrays = dict(stored)
    np.savez(copy / "predictions.npz", **{name: array[::-1] for name, array in arrays.items()})
    page, notes = report([copy], tmp_path / "report.html", images=True)
    assert page.images == [] and len(notes) == 1 and "the data is not what it was" in notes[0]


def test_the_same_run_gives_the_same_page(digits_run, tmp_path):
    for name in ("one", "two"):
        report([digits_run], tmp_path / name, images=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_samples_are_fair_to_rare_classes():
    labels = np.repeat([0, 1, 2], [1000, 30, 3])
    chosen = labels[sampling.fair_sample(labels, 60)]
    assert np.bincount(chosen).tolist() in ([29, 28, 3], [28, 29, 3])
    assert sampling.fair_sample(labels, 5000).tolist() == list(range(1033))
    assert sampling.rank_within(np.array([2, 0, 2, 2, 0])).tolist() == [0, 0, 1, 2, 1]


def test_names_of_stages_do_not_run_into_each_other(train, tmp_path):
    names = ("quite_a_long_name", "another_name_of_a_stage", "short", "a_stage_of_that_name")
    stages = [{"name": name, "iterations": 1, "optimizer": {"lr": 0.01}} for name in names]
    page, _ = report([train(stages=stages)], tmp_path / "report.html")
    figure = page.raw.split("<figcaption>Mean accuracy of each group")[1].partition("</figure>")[0]
    texts = re.findall("<text[^>]*>(.*?)</text>", figure)
    assert texts[:4] == ["quite_…g_name", "anothe…_stage", "short", "a_stag…t_name"]
    curve = page.raw.split("<figcaption>Training loss")[1].partition("</figure>")[0]
    above = re.findall("<text[^>]*>(.*?)</text>", curve)
    assert "short" in above and "quite_a_long_name" not in above


def test_damaged_lines_are_named(digits_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(digits_run, copy)
    (copy / "metrics.jsonl").write_text("{\n{}\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl is damaged"):
        read_run(copy)


def test_the_documentation_names_every_section(digits_page):
    documentation = (Path(__file__).parents[1] / "docs" / "report.md").read_text()
    rows = documentation.split("| --- | --- |\n")[1].split("\n\n")[0].splitlines()
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", digits_page[0].raw)
    named = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    assert [name for name in named if name in titles] == titles
    assert {"Methods, epoch by epoch", "Classes, epoch by epoch"} <= {*named} - {*titles}  # not in this run
    assert f"at most {maps.SAMPLES} training and {maps.SAMPLES} test images" in documentation
    assert material.CLASSES == 9 and "the nine classes with the lowest accuracy" in documentation


def test_photographs_become_small_jpegs(train, tmp_path):
    random = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, 256, (150, 200, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    options = {"root": str(tmp_path / "photos")}
    data = {"use": "image_folder", "options": options, "transform": {"image_size": 16}, "workers": 0}
    path = train(data=data)
    page, notes = report([path], tmp_path / "report.html", images=True, features=True)
    assert notes == [] and page.images and "features" in page.sections
    for source in page.images:
        kind, _, content = source.partition(",")
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert kind == "data:image/jpeg;base64" and image.size == (96, 72)
    (tmp_path / "photos" / "a" / "3.png").unlink()
    page, notes = report([path], tmp_path / "report.html", images=True, features=True)
    assert page.images == [] and len(notes) == 1 and "no feature map, no example images and no analysis" in notes[0]


def test_an_image_that_cannot_be_opened_is_left_out():
    class Damaged:
        def open(self, index):
            raise SyntaxError("not a PNG file")

    assert thumbnail(Damaged(), 3, ImageTransform("none", 8), 3) is None
