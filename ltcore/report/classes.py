"""The sections that look at every class: accuracy, diagnostics, unsure predictions, and the table of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from ltcore.contract.figures import DIAGNOSTICS, DiagnosticName, shot_groups
from ltcore.report.blocks import Cell, Folded, Panels, Part, Row, Runs, Section, Shown, Table
from ltcore.report.chart import Axis, Chart, Series
from ltcore.report.data import ReportedRun
from ltcore.report.labels import capital, number, percent
from ltcore.report.layout import accuracy_axis, count_axis, each_run, ended, folded, group_dividers, headed, upward_axis
from ltcore.report.sections import tested

#: With more classes than these, a line shows the mean of each tenth of them.
_FEW_CLASSES = 30
_TENTHS = 10
#: With more classes than these, paper has the table of all only where a reader has opened it.
_PRINTED = 60


#: A figure of every class, for a chart: whose, its name in the legend, the number of its colour and marker, and the
#: values, None where there is none.
ClassFigure: TypeAlias = tuple[ReportedRun, str, int, Sequence[float | None]]


def accuracy(runs: Runs) -> Section:
    """Accuracy of each class against its training images: of one run after each stage, of several at the end."""
    drawn: list[ClassFigure] = []
    for one in ended(runs):
        found = list(enumerate(tested(one.run)))
        if not one.alone and one.run.result:
            found = [(one.index, (one.name, "", one.run.result["after_calibration"]))]
        drawn += [(one.run, name, n, figures["per_class_accuracy"]) for n, (name, _, figures) in found]
    charts: list[Part] = []
    for title, figures in (("Accuracy on test images", drawn), *_diagnosed(runs, "train_accuracy")):
        charts += [by_count(runs, title, accuracy_axis(), figures, percent)] if figures else []
    crowded = any(len(one.run.counts) > _FEW_CLASSES for one in runs)
    lines = "; lines are the means of the classes' tenths, by frequency" if crowded else ""
    text = f"Which classes fail, and whether those are the rare ones: a point is a class{lines}."
    title = "Accuracy of each class against its training images"
    return Section("accuracy", title, text, [Panels(charts)] if charts else [])


def diagnostics(runs: Runs) -> Section:
    """What the run's diagnostics found: norms of the classifier's rows and feature deviation."""
    text = (
        "Why rare classes fail. A classifier whose rows grow with the number of images favours frequent classes; and "
        "features of training images that lie far from those of the class's test images do not generalise (CDT, Ye et "
        "al. 2020, section 3.3)."
    )
    found = _diagnosed(runs, "classifier_norm", "feature_deviation")
    charts = []
    for (title, drawn), words in zip(found, ("norm", "distance of the means"), strict=False):
        y = upward_axis(words, [value for *_, values in drawn for value in values if value is not None])
        charts.append(by_count(runs, title, y, drawn, number))
    parts = [Panels(charts)] if charts else []
    return Section("diagnostics", "Classifier norms and feature deviation", text, parts)


def _diagnosed(runs: Runs, *names: DiagnosticName) -> list[tuple[str, list[ClassFigure]]]:
    """The titles of diagnostics with their figures: of one run after each stage, of several after the last."""
    found = []
    for name in names:
        drawn: list[ClassFigure] = []
        for one in ended(runs):
            known = [(stage["name"], stage["diagnostics"][name]) for stage in one.run.stages if "diagnostics" in stage]
            if one.alone:
                drawn += [(one.run, stage, place, values) for place, (stage, values) in enumerate(known)]
            elif known:
                drawn.append((one.run, one.name, one.index, known[-1][1]))
        found += [(capital(DIAGNOSTICS[name].long), drawn)] if drawn else []
    return found


def by_count(
    runs: Runs, title: str, y: Axis, drawn: Sequence[ClassFigure], write: Callable[[float | None], str], said: str = ""
) -> Chart:
    """A point for each class at its number of training images; all of one run but the last are hollow.

    It is in words what is `said`, or else the means of frequent and of rare classes.
    """
    x, series = count_axis(runs), []
    for place, (run, name, style, values) in enumerate(drawn):
        counts, names = run.counts, run.names
        known = [(label, value) for label in run.order if (value := values[label]) is not None]
        points = [(float(counts[label]), value) for label, value in known]
        titles = [f"{names[label]}: {counts[label]} images, {write(value)}" for label, value in known]
        tenths = np.array_split(np.array(points), _TENTHS) if len(known) > _FEW_CLASSES else []
        means = [(float(np.exp(np.log(part[:, 0]).mean())), float(part[:, 1].mean())) for part in tenths]
        hollow = len(runs) == 1 and place + 1 < len(drawn)
        series.append(Series(name, points, style, titles, hollow=hollow, dash=style, trend=means))
    said = said or "; ".join(_said(each, write) for each in series)
    return Chart(title, said, x, y, series, group_dividers(x), legend=len(runs) > 1)


def _said(series: Series, write: Callable[[float | None], str]) -> str:
    """A series in words: the means of the most frequent and the rarest third."""
    values = [value for _, value in series.points]
    third = max(1, len(values) // 3)
    head, tail = sum(values[:third]) / third, sum(values[-third:]) / third
    return f"{series.name}: {write(head)} for the most frequent third of the classes, {write(tail)} for the rarest"


def all_classes(runs: Runs) -> Section:
    """Every class with its figures: the charts' values as text."""

    def draw(one: Shown) -> list[Part]:
        run = one.run
        if not run.result:
            return []
        groups, found = shot_groups(run.counts), run.result.get("classes")
        images = np.bincount(run.predictions.targets, minlength=len(run.counts)) if run.predictions else None
        # Of each column, its title, where its list is in the results (nowhere for the interval), and its cells.
        columns = [
            (f"accuracy, {name}", f"{path}/per_class_accuracy", list(map(percent, figures["per_class_accuracy"])))
            for name, path, figures in tested(run)
        ]
        if found:
            ends = ["-".join(map(percent, interval)) if interval else "" for interval in found["recall_interval"]]
            columns.append(("95 % interval", "", ends))
            columns.append(("precision", "classes/precision", list(map(percent, found["precision"]))))
            columns.append(("F1", "classes/f1", list(map(percent, found["f1"]))))
        for place, stage in enumerate(run.stages):
            for name, figure in DIAGNOSTICS.items() if "diagnostics" in stage else ():
                if name != "test_accuracy":  # it is there already
                    cells = list(map(percent if figure.fraction else number, stage["diagnostics"][name]))
                    columns.append((f"{figure.short}, {stage['name']}", f"stages/{place}/diagnostics/{name}", cells))
        rows: list[Row] = [
            [
                run.names[label],
                groups[label],
                Cell(f"{run.counts[label]:,}"),
                Cell(f"{images[label]:,}" if images is not None else ""),
                *(Cell(cells[label]) for _, _, cells in columns),
            ]
            for label in run.order
        ]
        head = ["class", "group", "training images", "test images", *(title for title, _, _ in columns)]
        lists = ["", "", "", "", *(path and f"{one.index}/{path}" for _, path, _ in columns)]
        table = Table(head, rows, "Every class, the most frequent first", lists, run.order)
        return [Folded(f"All {len(rows)} classes", [table], printed=len(rows) <= _PRINTED)]

    text = (
        "The values of the charts by class, the most frequent first; fractions in percent. The interval of 95 percent "
        "(Wilson) says how far the accuracy may be off with so few test images; precision and F1 are those after "
        "calibration."
    )
    return Section("classes", "All classes", text, each_run(runs, draw, "The run has not ended."))


def unsure(runs: Runs) -> Section:
    """How many predictions are sure, how often these are right, and the classes without a threshold of their own."""
    rows: list[Row] = []
    lists: list[Part] = []
    for one in ended(runs):
        run = one.run
        if not run.result or "unsure" not in run.result:
            continue
        found, counts = run.result["unsure"], run.result["unsure"]["test"]
        for name, place, part in (("held-out", "held_out", found["held_out"]), ("test", "test", counts)):
            figures = [one.cell(part[key], f"unsure/{place}/{key}") for key in ("coverage", "precision")]
            asked = one.cell(found["precision"], "unsure/precision")
            rows.append([*one.own, f"{name} images", asked, *figures])
        classes: list[Row] = []
        for label in run.order:
            threshold, sure, right = found["thresholds"][label], counts["sure"][label], counts["right"][label]
            cells = (str(sure), str(right), percent(right / sure if sure else None))
            said = "always unsure" if threshold is None else percent(threshold)
            classes.append([run.names[label], *map(Cell, (said, *cells))])
        for names, why in ((found["shared"], "share a threshold"), (found["always"], "are always unsure")):
            lists += [Folded(f"{len(names)} classes {why}", [", ".join(names)])] if names else []
        head = ["class", "threshold", "sure", "of them right", "precision"]
        caption = "Threshold of each class in percent, and the test images that are surely taken for it"
        lists.append(folded(f"Thresholds of {len(classes)} classes", head, classes, caption))
    text = (
        "A prediction is unsure where its probability is below the threshold of its class. Thresholds were chosen on "
        "held-out images, so that the predictions that are left are right as often as was asked for; on test images "
        "they may be right less often. Coverage is the share of images that are sure. In percent."
    )
    table = Table(headed(runs, "on", "asked", "coverage", "precision"), rows, "Sure predictions, in percent")
    return Section("unsure", "Unsure predictions", text, [table, *lists] if rows else [])
