"""The sections that look at every class: accuracy, classifier norms, feature deviation, and the table of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from ltcore.data.describe import shot_group
from ltcore.report.chart import Axis, Chart, Series
from ltcore.report.data import ReportedRun
from ltcore.report.layout import (
    Runs,
    accuracy_axis,
    cell,
    count_axis,
    each_run,
    ended,
    group_dividers,
    number,
    panels,
    percent,
    run_name,
    section,
    upward_axis,
)
from ltcore.report.markup import Content, details, element, table
from ltcore.report.sections import tested

#: With more classes than these, a line shows the mean of each tenth of them.
_FEW_CLASSES = 30
_TENTHS = 10

Values = Sequence[float | None]


def accuracy(runs: Runs) -> Element | None:
    """Accuracy of each class against its training images."""
    found = ended(runs)
    if not found:
        return None
    if len(runs) == 1:
        rows = tested(runs[0])
        kinds = [(runs[0], name, figures["per_class_accuracy"]) for name, _, figures in rows]
    else:
        kinds = [
            (run, run_name(runs, index), _final(run)["per_class_accuracy"]) for index, run in found
        ]
    styles = list(range(len(kinds))) if len(runs) == 1 else [index for index, _ in found]
    chart = _by_count(runs, "Accuracy of each class", accuracy_axis(), kinds, styles, percent)
    lines = "; lines are the means of the classes' tenths, by frequency" if _many(runs) else ""
    text = f"Which classes fail, and whether those are the rare ones: a point is a class{lines}."
    return section("accuracy", "Accuracy of each class against its training images", text, panels(chart))


def diagnostics(runs: Runs) -> Element | None:
    """What the run's diagnostics found: norms of the classifier's rows, feature deviation, accuracy on training images."""
    kinds: list[tuple[ReportedRun, str, dict[str, Any]]] = []
    styles = []
    for index, run in ended(runs):
        known = [(stage["name"], stage["diagnostics"]) for stage in run.stages if "diagnostics" in stage]
        for name, figures in known if len(runs) == 1 else known[-1:]:
            styles.append(len(styles) if len(runs) == 1 else index)
            kinds.append((run, name if len(runs) == 1 else run_name(runs, index), figures))
    if not kinds:
        return None

    def draw(title: str, name: str, axis: str = "") -> Element:
        values = [(run, label, figures[name]) for run, label, figures in kinds]
        known = [value for _, _, each in values for value in each if value is not None]
        y = upward_axis(axis, known) if axis else accuracy_axis()
        return _by_count(runs, title, y, values, styles, number if axis else percent)

    text = (
        "Why rare classes fail. A classifier whose rows grow with the number of images favours frequent classes; "
        "features of rare classes lie further from those of their test images (CDT, Ye et al. 2020, section 3.3), "
        "while training images are all learned."
    )
    charts = (
        draw("Norm of the classifier's row of each class", "classifier_norm", "norm"),
        draw("Feature deviation between training and test images", "feature_deviation", "distance of the means"),
        draw("Accuracy on training images", "train_accuracy"),
    )
    return section("diagnostics", "Classifier norms and feature deviation", text, panels(*charts))


def all_classes(runs: Runs) -> Element | None:
    """Every class with its figures: the charts' values as text."""
    if not ended(runs):
        return None

    def draw(index: int, run: ReportedRun) -> list[Content]:
        if not run.result:
            return [element("p", "The run has not ended.")]
        images = np.bincount(run.predictions.targets, minlength=len(run.counts)) if run.predictions else None
        columns = [(name, f"{path}/per_class_accuracy", f["per_class_accuracy"]) for name, path, f in tested(run)]
        last = [(place, stage["diagnostics"]) for place, stage in enumerate(run.stages) if "diagnostics" in stage]
        extra = [
            (title, f"stages/{place}/diagnostics/{name}", figures[name])
            for place, figures in last[-1:]
            for title, name in (("norm", "classifier_norm"), ("deviation", "feature_deviation"))
        ]
        rows = []
        for label in run.order:
            row: list[Content] = [run.names[label], shot_group(run.counts[label])]
            row.append(element("td", f"{run.counts[label]:,}", class_="number"))
            row.append(element("td", f"{images[label]:,}" if images is not None else "", class_="number"))
            row += [cell(values[label], f"{index}/{path}/{label}") for _, path, values in columns]
            row += [cell(values[label], f"{index}/{path}/{label}", number) for _, path, values in extra]
            rows.append(row)
        titles = [*(f"accuracy, {name}" for name, _, _ in columns), *(title for title, _, _ in extra)]
        head = ["class", "group", "training images", "test images", *titles]
        return [details(f"All {len(rows)} classes", table(head, rows, "Every class, the most frequent first"))]

    text = "The values of the charts by class, the most frequent first; accuracies in percent."
    return section("classes", "All classes", text, each_run(runs, draw))


def _final(run: ReportedRun) -> dict[str, Any]:
    assert run.result is not None
    figures: dict[str, Any] = run.result["after_calibration"]
    return figures


def _many(runs: Runs) -> bool:
    return any(len(run.counts) > _FEW_CLASSES for run in runs)


def _by_count(
    runs: Runs,
    title: str,
    y: Axis,
    kinds: Sequence[tuple[ReportedRun, str, Values]],
    styles: Sequence[int],
    write: Any,
) -> Element:
    """A point a class at its number of training images; earlier kinds of one run are hollow."""
    x = count_axis(runs)
    series = []
    for place, ((run, name, values), style) in enumerate(zip(kinds, styles, strict=True)):
        known = [(label, value) for label in run.order if (value := values[label]) is not None]
        points = [(float(run.counts[label]), value) for label, value in known]
        titles = [f"{run.names[label]}: {run.counts[label]} images, {write(value)}" for label, value in known]
        series.append(Series(name, points, style, titles, hollow=place + 1 < len(kinds)))
        if len(known) > _FEW_CLASSES:
            means = [
                (float(np.exp(np.log(part[:, 0]).mean())), float(part[:, 1].mean()))
                for part in np.array_split(np.array(points), _TENTHS)
            ]
            series.append(Series(f"{name}, mean of tenths", means, style, line=True, marks=False, dash=style))
    said = "; ".join(_said(name, run, values, write) for run, name, values in kinds)
    return Chart(title, said, x, y, series, group_dividers(x)).draw()


def _said(name: str, run: ReportedRun, values: Values, write: Any) -> str:
    """A series in words: the means of the most frequent and the rarest third."""
    known = [value for label in run.order if (value := values[label]) is not None]
    third = max(1, len(known) // 3)
    head, tail = sum(known[:third]) / third, sum(known[-third:]) / third
    return f"{name}: {write(head)} for the most frequent third of the classes, {write(tail)} for the rarest"
