"""What ``ltcore report`` draws with ``--analysis`` and ``--classes``: each value against a computation of its own."""

import html
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ltcore
from ltcore import Method, ReportScatter, ReportTable, hookimpl
from ltcore.errors import RecipeError
from ltcore.report import analysis, maps, pictured
from ltcore.report.chart import COLORS, QUIET, Axis, Chart, Regions
from ltcore.report.chosen import named, spread
from ltcore.report.data import read_run
from ltcore.report.material import Choices, gather
from ltcore.report.sampling import fair_sample

sys.path.insert(0, str(Path(__file__).parent))
from report_pages import Page, drawn_lines, report, scale

#: What a page has with --analysis, beside what it has without.
ANALYSED = {"changes", "decisions", "means", "boundaries"}


@pytest.fixture
def train(write_recipe, tmp_path):
    """Train a small recipe; arguments as for `write_recipe`."""

    def run(name="r", **parts):
        return ltcore.run(write_recipe(name, **parts), out=tmp_path / "runs").path

    return run


@pytest.fixture(scope="module")
def analysed(digits_run, tmp_path_factory):
    """The digits run with its analysis: the page, and what was gathered."""
    page, notes = report([digits_run], tmp_path_factory.mktemp("analysis") / "r.html", features=True, analysis=True)
    assert notes == []
    return page, gather(read_run(digits_run), Choices(features=False, images=False, analysis=True))


def test_decision_values_are_the_mean_logits_of_each_class(analysed, digits_run):
    page, material = analysed
    saved = ltcore.load(digits_run)
    weight, bias = (tensor.numpy() for tensor in (saved.model.classifier.weight, saved.model.classifier.bias))
    targets = {"train": saved.read_data().train.targets.numpy(), "test": saved.targets}
    for split, found in (("train", material.analysis.train), ("test", material.analysis.test)):
        logits = saved.features(split) @ weight.T + bias
        wanted = np.stack([logits[targets[split] == label].mean(0) for label in range(10)])
        np.testing.assert_allclose(found.values, wanted, atol=1e-4)
        np.testing.assert_allclose(found.own, wanted.diagonal(), atol=1e-4)
        rates = [
            [(logits[targets[split] == label].argmax(1) == other).mean() for other in range(10)] for label in range(10)
        ]
        np.testing.assert_allclose(found.rates, rates, atol=1e-12)
        np.testing.assert_allclose(page.data["runs"][0]["analysis"]["decision_values"][split], wanted, atol=1e-3)
    chart = page.charts["Decision value of a class for its own images"]
    y, run = scale(chart["y"]), read_run(digits_run)
    for series, found in (("points0", material.analysis.train), ("points1", material.analysis.test)):
        heights = [y(height) for _, height, _ in chart["series"][series]]
        assert heights == pytest.approx([found.own[label] for label in run.order], abs=0.02 * np.abs(found.own).max())


def test_confusion_of_each_stage_gives_its_recorded_accuracies(analysed, digits_run):
    page, _ = analysed
    result = json.loads((digits_run / "result.json").read_text())
    by_stage = page.data["runs"][0]["analysis"]["confusion_by_stage"]
    assert list(by_stage) == [stage["name"] for stage in result["stages"]]
    for stage in result["stages"]:
        matrix = np.array(by_stage[stage["name"]])
        assert (matrix.diagonal() / matrix.sum(1)).tolist() == stage["test"]["per_class_accuracy"]
    one, two = (np.array(each) for each in by_stage.values())
    wanted = ltcore.load(digits_run)
    assert (two.sum(1) == np.bincount(wanted.targets)).all() and (one != two).any()
    changes = (
        re.sub(r">\s+<", "><", html.unescape(page.raw))
        .split("The largest changes by 'finetune'")[1]
        .partition("</table>")[0]
    )
    rows = re.findall(
        r'<tr><th scope="row">(\d+)</th><td class="text">(\d+)</td>' + r"<td>([-+.\d]+)</td>" * 3, changes
    )
    names, totals = result["class_names"], one.sum(1)
    assert rows
    for row, column, before, after, change in rows:
        at = names.index(row), names.index(column)
        rates = [100 * each[at] / totals[at[0]] for each in (one, two)]
        assert [float(before), float(after)] == pytest.approx(rates, abs=0.051)
        assert float(change) == pytest.approx(rates[1] - rates[0], abs=0.051)
    largest = max(abs(float(change)) for *_, change in rows)
    assert largest == pytest.approx(100 * np.abs(two / totals[:, None] - one / totals[:, None]).max(), abs=0.051)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_nearest_means_of_training_and_of_test_features(analysed, digits_run):
    _, material = analysed
    saved, means = ltcore.load(digits_run), material.analysis.means
    targets = {"train": saved.read_data().train.targets.numpy(), "test": saved.targets}
    features = {split: unit(saved.features(split).astype(np.float64)) for split in targets}
    own, *nearest = means
    assert own.top1 == saved.metrics["top1"] and own.balanced == pytest.approx(saved.metrics["balanced_accuracy"])
    for split, found in zip(("train", "test"), nearest, strict=True):
        centres = unit(np.stack([features[split][targets[split] == label].mean(0) for label in range(10)]))
        said = np.array([np.linalg.norm(centres - row, axis=1).argmin() for row in features["test"]])
        assert found.top1 == pytest.approx((said == saved.targets).mean(), abs=1e-12)
        each = [(said[saved.targets == label] == label).mean() for label in range(10)]
        assert found.balanced == pytest.approx(np.mean(each), abs=1e-12)
        assert found.name == f"nearest mean of {'training' if split == 'train' else 'test'} features"


def test_nearest_training_means_are_what_ncm_says(train):
    saved = ltcore.load(train(methods="{ncm: {}}", calibrate="[ncm]"))
    found = gather(read_run(saved.path), Choices(features=False, images=False, analysis=True)).analysis
    assert found.means[1].top1 == saved.metrics["top1"]
    assert [stage.name for stage in found.stages] == ["joint", "calibration"]


def test_a_class_without_test_images_is_left_out_of_the_means():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    said = analysis.class_mean_predictions(rows, torch.tensor([0, 2]), torch.tensor([[0.1, 0.2], [3.0, 1.0]]), 4)
    assert said.tolist() == [2, 0]
    found = analysis.decisions(torch.eye(3)[:2], torch.tensor([0, 1]), 3)
    assert np.isnan(found.own[2]) and np.isnan(found.values[2]).all() and np.isnan(found.rates[2]).all()


class Maker(Method):
    """Appends a copy of each row of a class above 1, moved by noise of its own; keeps those of the last epoch."""

    interface = "1.1"

    @hookimpl
    def on_run_start(self, context):
        (dim,) = context.feature_shape("pooled")
        self.register_buffer("kept", torch.zeros(200, dim))
        self.register_buffer("labels", torch.zeros(200, dtype=torch.int64))
        self.register_buffer("number", torch.zeros((), dtype=torch.int64))

    @hookimpl
    def augment_features(self, features, context):
        if context.step == 0:
            self.number.zero_()
        rows = torch.nonzero(features.targets > 1)[:, 0]
        noise = torch.randn(len(rows), features.features.shape[1], generator=context.generator)
        made, start = features.features[rows] + 100 + noise, int(self.number)
        if start + len(rows) <= 200:
            self.kept[start : start + len(rows)] = made.detach()
            self.labels[start : start + len(rows)] = features.targets[rows]
            self.number += len(rows)
        return features.append(made, features.targets[rows], features.source_index[rows])


TWO_STAGES = """
  - {name: one, epochs: 1, batch_size: 8, optimizer: {lr: 0.05}}
  - {name: two, epochs: 2, batch_size: 8, methods: [maker], trainable: [classifier], optimizer: {lr: 0.01}}"""


def test_made_rows_are_those_of_the_last_epoch(train, offer_methods):
    offer_methods(maker=Maker)
    path = train(methods="{maker: {}}", stages=TWO_STAGES)
    stored = load_file(path / "checkpoints" / "stage-1-two.safetensors")
    number = int(stored["model/methods.maker.number"])
    saved, found, ends = ltcore.load(path), {}, []
    data = saved.read_data()

    def visit(end):
        ends.append(end.name)
        before = {name: tensor.clone() for name, tensor in end.assembly.model.state_dict().items()}
        for classes in (None, [3]):
            found[end.name, classes and 3] = end.made_rows(10_000, 10_000, classes)
        found[end.name, "few"] = end.made_rows(10_000, 1)
        found[end.name, "one"] = end.made_rows(1, 10_000)
        after = end.assembly.model.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())

    state = torch.get_rng_state()
    saved.for_each_stage(data, visit)
    assert torch.equal(torch.get_rng_state(), state)
    assert ends == ["one", "two"] and found["one", None] is None
    made = found["two", None]
    assert len(made.features) == number > 10 and made.methods == ("maker",)
    torch.testing.assert_close(made.features, stored["model/methods.maker.kept"][:number], atol=1e-4, rtol=1e-5)
    assert torch.equal(made.targets, stored["model/methods.maker.labels"][:number])
    rare = made.targets == 3
    assert torch.equal(found["two", 3].features, made.features[rare]) and 0 < rare.sum() < number
    few = found["two", "few"].targets
    assert 0 < len(few) < 8 and torch.equal(few, made.targets[: len(few)])  # the first batch that has any
    one = found["two", "one"]
    assert one is None or torch.equal(one.targets, few)  # the first batch


def test_made_rows_stand_beside_real_ones(train, offer_methods, tmp_path):
    offer_methods(maker=Maker)
    path = train(methods="{maker: {}}", stages=TWO_STAGES)
    page, notes = report([path], tmp_path / "r.html", features=True, classes=["3", "0", "2"])
    assert notes == []
    (title,) = [caption for caption in page.charts if caption.startswith("Features a")]
    assert title == "Features after 'two', with made rows"
    saved = ltcore.load(path)
    trained = np.bincount(saved.read_data().train.targets.numpy())
    series = {name: [title for *_, title in points] for name, points in page.charts[title]["series"].items()}
    names = saved.class_names
    shown = [set(titles) for titles in series.values()]
    made = [f"{names[label]}, made" for label in (3, 0, 2) if label > 1]  # in the order of --classes, made rows first
    real = [f"{names[label]}, {kind}" for kind in ("test", "training") for label in (3, 0, 2)]
    assert shown == [{title} for title in made + real]
    numbers = [len(titles) for titles in series.values()][len(made) :]
    assert numbers == [4, 4, 4, *(trained[label] for label in (3, 0, 2))]
    (found,) = gather(read_run(path), Choices(images=False, classes=("3", "0", "2"))).maps
    middles = {kind: found.points[found.kinds == kind].mean(0) for kind in range(3)}
    real = np.linalg.norm(middles[maps.TRAINING] - middles[maps.TEST])
    assert np.linalg.norm(middles[maps.MADE] - middles[maps.TRAINING]) > 2 * real  # they lie 100 apart


def test_a_method_that_makes_rows_before_the_last_stage_has_a_map_of_its_own(train, offer_methods, tmp_path):
    offer_methods(maker=Maker)
    stages = """
  - {name: one, epochs: 1, batch_size: 8, methods: [maker], optimizer: {lr: 0.05}}
  - {name: two, epochs: 1, batch_size: 8, trainable: [classifier], optimizer: {lr: 0.01}}"""
    page, notes = report([train(methods="{maker: {}}", stages=stages)], tmp_path / "r.html", features=True)
    captions = [caption for caption in page.charts if caption.startswith("Features a")]
    assert notes == []
    assert captions == ["Features after 'one', with made rows", "Features at the end of the last stage"]


class Failing(Maker):
    @hookimpl
    def augment_features(self, features, context):
        if context.stage == "two" and not features.features.requires_grad and not context.model.training:
            raise ValueError("no gradient here")
        return features


def test_what_a_method_cannot_do_is_a_note_and_the_rest_is_drawn(train, offer_methods, tmp_path):
    offer_methods(maker=Failing)
    stages = TWO_STAGES.replace("trainable: [classifier]", "trainable: [backbone, classifier]")
    path = train(methods="{maker: {}}", stages=stages)
    page, notes = report([path], tmp_path / "r.html", features=True)
    assert (
        len(notes) == 1 and "no map of stage 'two': 'maker' (ltcore-tests 0.0) failed in augment_features" in notes[0]
    )
    assert "Features at the end of the last stage" in page.charts
    (path / "checkpoints" / "stage-0-one.safetensors").unlink()
    page, notes = report([path], tmp_path / "r.html", features=True, analysis=True)
    assert len(notes) == 1 and "stages cannot be opened again" in notes[0] and "stage-0-one.safetensors" in notes[0]
    assert {"features", "decisions", "means"} <= set(page.sections) and "changes" not in page.sections


class Showing(Method):
    """Shows a table and vectors of the chosen classes."""

    shown = None

    def reported(self, classes, context):
        if self.shown is not None:
            return self.shown
        drawn = torch.rand(1, generator=context.generator)
        assert not torch.is_grad_enabled() and not context.model.training
        rows = [[str(label), float(label) + 0.123456] for label in classes]
        labels = torch.tensor(list(classes)).repeat(4)
        vectors = torch.nn.functional.one_hot(labels, 5).float() + 0.01 * torch.arange(len(labels))[:, None]
        panels = {"apart": (vectors, labels), "together": (torch.ones(len(labels), 5) + vectors / 1000, labels)}
        return [
            ReportTable(f"numbers <i>{context.stage}</i>", f"drawn {float(drawn)}", ["label", "value"], rows),
            ReportScatter("vectors", "look", panels),
        ]

    @hookimpl
    def class_weights(self):
        return None


SHOWING = """
  - {name: one, epochs: 1, batch_size: 8, methods: [showing], optimizer: {lr: 0.05}}
  - {name: two, epochs: 1, batch_size: 8, methods: [showing], optimizer: {lr: 0.05}}"""


def test_methods_show_tables_and_vectors(train, offer_methods, tmp_path):
    offer_methods(showing=Showing)
    path = train(methods="{showing: {}}", stages=SHOWING)
    page, notes = report([path], tmp_path / "r.html", features=True, analysis=True, classes=["2", "0"])
    assert notes == [] and "shown" in page.sections
    assert "showing: numbers <i>two</i>" in page.text and "<i>one</i>" not in page.text  # the last stage alone
    assert not [tag for tag, _ in page.tags if tag == "i"]
    assert re.search(r"2\s*2\.123\s*0\s*0\.1235", page.text)
    captions = [caption for caption in page.charts if "silhouette" in caption]
    assert [caption.partition(" (")[0] for caption in captions] == ["Apart", "Together"]
    assert float(captions[0].split()[-1].rstrip(")")) > 0.9
    again, _ = report([path], tmp_path / "r2.html", features=True, analysis=True, classes=["2", "0"])
    assert again.raw == page.raw  # the draws too
    assert "shown" in report([path], tmp_path / "r3.html", analysis=True)[0].sections  # the table, without t-SNE
    assert "shown" not in report([path], tmp_path / "r3.html", features=True)[0].sections


@pytest.mark.parametrize(
    "wrong, said",
    [
        ([3], "gave int, which is neither a ReportScatter nor a ReportTable"),
        ([ReportTable("t", "", ["a"], [["x", 1.0]])], "rows are not as long as its head"),
        ([ReportScatter("t", "", {"p": (torch.zeros(2, 3), torch.tensor([0, 9]))})], "labels that are no classes"),
        ([ReportScatter("t", "", {"p": (torch.zeros(2), torch.tensor([0, 1]))})], r"no vectors [N, D]"),
        ([ReportScatter("t", "", {"p": (torch.full((1, 2), torch.nan), torch.tensor([0]))})], "not finite"),
        (3, "failed in reported: TypeError"),
    ],
)
def test_what_a_method_shows_is_looked_at(train, offer_methods, monkeypatch, wrong, said):
    offer_methods(showing=Showing)
    path = train(methods="{showing: {}}", stages=SHOWING)
    monkeypatch.setattr(Showing, "shown", wrong)
    notes = gather(read_run(path), Choices(images=False, analysis=True)).notes
    assert len(notes) == 1 and "nothing that 'showing' shows: 'showing' (ltcore-tests 0.0)" in notes[0]
    assert said in notes[0]


def test_stages_with_other_features_have_no_map_of_decisions(train, offer_methods):
    stages = """
  - {name: one, epochs: 1, batch_size: 8, optimizer: {lr: 0.05}}
  - {name: two, epochs: 1, batch_size: 8, optimizer: {lr: 0.05}}
  - {name: three, epochs: 1, batch_size: 8, trainable: [classifier], optimizer: {lr: 0.05}}"""
    path = train(stages=stages)
    found = gather(read_run(path), Choices(images=False, analysis=True, classes=("1", "3"))).analysis
    assert [stage.same_features for stage in found.stages] == [False, True, True]
    same = np.array_equal(
        *(stage.predictions[np.isin(ltcore.load(path).targets, [1, 3])] for stage in found.stages[1:])
    )
    assert list(found.decisions.said) == ["two"] if same else ["two", "three"]
    assert set(found.decisions.targets.tolist()) == {1, 3} and len(found.decisions.targets) == 8
    saved = ltcore.load(path)
    kept = np.isin(saved.targets, [1, 3])
    assert (list(found.decisions.said.values())[-1] == saved.logits.argmax(1)[kept]).all()


def test_the_background_is_the_vote_of_the_nearest_points():
    from sklearn.neighbors import KNeighborsClassifier

    random = np.random.default_rng(0)
    points, said = random.normal(size=(80, 2)), random.integers(0, 3, 80)
    x, y = pictured.axes(points)
    found = pictured.vote(points, said, x, y)
    across, down = pictured.GRID
    assert found.shape == (down, across)
    spread_of = np.array([x.high - x.low, y.high - y.low])
    model = KNeighborsClassifier(pictured.NEIGHBOURS).fit(points / spread_of, said)
    checked = 0
    for row, column in random.integers(0, (down, across), (300, 2)):
        place = (x.low + (column + 0.5) / across * spread_of[0], y.high - (row + 0.5) / down * spread_of[1])
        shares = np.sort(model.predict_proba([place / spread_of])[0])
        if shares[-1] > shares[-2]:
            checked += 1
            assert found[row, column] == model.predict([place / spread_of])[0]
    assert checked > 150


def test_the_background_fills_the_plot_with_the_colours_of_its_cells():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    cells = np.array([[0, 0, 1], [2, 1, 1]])
    axis = Axis("", 0, 1, named=())
    drawn = Chart("t", "s", axis, axis, [], behind=Regions(cells, {0: 1, 1: 0}))
    figure = Figure(figsize=(4, 4), dpi=100)
    drawn.paint(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3] / 255
    for row, column in np.ndindex(2, 3):
        for right, up in ((0.5, 0.5), (0.1, 0.1), (0.9, 0.9)):  # in the middle of a cell, and beside its corners
            x, y = figure.axes[0].transData.transform(((column + right) / 3, (1 - row + up) / 2))
            color = {0: COLORS[1], 1: COLORS[0], 2: QUIET}[cells[row, column]]
            wanted = 1 - 0.18 * (1 - np.array(to_rgb(color)))
            np.testing.assert_allclose(pixels[int(y), int(x)], wanted, atol=0.02)


def test_classes_by_epoch(train, tmp_path):
    data = {"use": "synthetic", "options": {"class_counts": [120, 60, 40, 8], "image_size": 8, "test_per_class": 4}}
    stages = """
  - {name: one, epochs: 2, batch_size: 32, optimizer: {lr: 0.05}}
  - {name: two, epochs: 3, batch_size: 32, trainable: [classifier], optimizer: {lr: 0.05}}"""
    path = train(data=data, diagnostics="epoch", stages=stages)
    lines = [json.loads(line)["diagnostics"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    page, _ = report([path], tmp_path / "r.html")
    assert page.sections.index("epochs") == page.sections.index("training") + 1
    names = {
        "Accuracy on training images, by epoch": "train_accuracy",
        "Accuracy on test images, by epoch": "test_accuracy",
        "Norm of the classifier's row of each class, by epoch": "classifier_norm",
        "Feature deviation between training and test images, by epoch": "feature_deviation",
    }

    def check(page, caption, members):
        values = [line[names[caption]] for line in lines]
        drawn = drawn_lines(page, caption, "1.6")
        room = 0.01 * max(max(each) for each in values)
        for line, labels in zip(drawn, members, strict=True):
            wanted = [(at, np.mean([each[label] for label in labels])) for at, each in enumerate(values, 1)]
            assert np.array(line) == pytest.approx(np.array(wanted), abs=max(room, 0.03))

    for caption in names:
        check(page, caption, [[0], [1, 2], [3]])  # many, medium and few
    page, _ = report([path], tmp_path / "r.html", classes=["3", "1"])
    for caption in names:
        check(page, caption, [[3], [1]])
    assert "epochs" not in report([train("plain")], tmp_path / "r.html")[0].sections


def test_chosen_classes_by_name_and_number(digits_run, train, offer_methods, cli, tmp_path):
    run = read_run(digits_run)
    assert named(run, ["3", "0", "3"]) == [3, 0]
    assert spread(run) == [run.order[round(place * 9 / 7)] for place in range(8)]
    cli("report", digits_run, "-o", tmp_path / "r.html", "--classes", "1,tree").is_one_message(
        2, f"--classes tree: {digits_run} has no class of that name, and its numbers go from 0 to 9"
    )
    every = "0,1,2,3,4,5,6,7,8"
    cli("report", digits_run, "-o", tmp_path / "r.html", "--classes", every).is_one_message(2, "9 classes are named")
    assert not (tmp_path / "r.html").exists()

    class Named(Method):
        @hookimpl
        def build_data(self):
            images = torch.arange(16 * 3 * 64).remainder(251).to(torch.uint8).view(16, 3, 8, 8)
            split = ltcore.ArraySplit(images, torch.arange(4).repeat_interleave(4))
            return ltcore.DataSplits(split, split, ("cat", "1", "dog", "<b>"), (0.5,) * 3, (0.5,) * 3)

    offer_methods(odd=Named)
    found = read_run(train("odd", data="{use: odd}"))
    assert named(found, ["dog", "1", "0", "<b>"]) == [2, 1, 0, 3]  # a name comes before a number
    with pytest.raises(RecipeError, match=r"no class of that name.*did you mean 'dog'"):
        named(found, ["dogs"])


def test_a_sample_of_some_classes():
    labels = np.repeat([0, 1, 2], [1000, 30, 3])
    assert np.bincount(labels[fair_sample(labels, 20, [1, 2])]).tolist() == [0, 17, 3]


def test_every_section_of_an_analysis_is_documented_and_named(analysed):
    page, _ = analysed
    assert set(page.sections) >= ANALYSED
    documentation = (Path(__file__).parents[1] / "docs" / "report.md").read_text()
    rows = documentation.split("| --- | --- |\n")[1].split("\n\n")[0].splitlines()
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", page.raw)
    assert [name for name in names if name in titles] == titles
    assert f"With more than {analysis.MATRIX_CLASSES} classes" in documentation


def test_the_command_line(cli, digits_run, tmp_path):
    out = tmp_path / "r.html"
    shown = cli("report", digits_run, "-o", out, "--no-images", "--no-features", "--analysis")
    assert shown.code == 0 and "note" not in shown.out, shown
    page = Page(out)
    assert {"changes", "decisions", "means"} <= set(page.sections)
    assert not {"features", "boundaries"} & set(page.sections)  # no t-SNE


def test_axes_leave_room():
    x, y = pictured.axes(np.array([[30.0, 5.0], [40.0, 5.0]]))
    assert isinstance(x, Axis) and (x.low, x.high) == pytest.approx((29.7, 40.3))
    assert (y.low, y.high) == pytest.approx((5, 5)) and y.low < 5 < y.high
