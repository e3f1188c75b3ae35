"""The sections that look at every class: accuracy, classifier norms, feature deviation, and the table of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ltcore.contract.figures import DIAGNOSTICS, DiagnosticName, shot_group
from ltcore.contract.result import Figures
from ltcore.report.blocks import Cell, Drawn, Folded, Panels, Part, Section, Table, Text
from ltcore.report.chart import Axis, Chart, Series
from ltcore.report.data import ReportedRun
from ltcore.report.layout import (
    Runs,
    accuracy_axis,
    cell,
    count_axis,
    each_run,
    ended,
    folded,
    group_dividers,
    number,
    numeric,
    percent,
    run_name,
    upward_axis,
)
from ltcore.report.sections import tested

#: With more classes than these, a line shows the mean of each tenth of them.
_FEW_CLASSES = 30
_TENTHS = 10

#: The diagnostics in the table of all classes; the accuracy on test images is there already.
_DIAGNOSTICS: tuple[DiagnosticName, ...] = ("train_accuracy", "classifier_norm", "feature_deviation")


@dataclass(frozen=True)
class ClassFigure:
    """A figure of every class, for a chart.

    Attributes:
        run: whose.
        name: for the legend.
        style: number of its colour and marker.
        values: one value per class; None where there is none.
    """

    run: ReportedRun
    name: str
    style: int
    values: Sequence[float | None]


def accuracy(runs: Runs) -> Section | None:
    """Accuracy of each class against its training images."""
    found = ended(runs)
    if not found:
        return None
    if len(runs) == 1:
        drawn = [
            ClassFigure(runs[0], name, place, figures["per_class_accuracy"])
            for place, (name, _, figures) in enumerate(tested(runs[0]))
        ]
    else:
        drawn = [
            ClassFigure(run, run_name(runs, index), index, _final(run)["per_class_accuracy"]) for index, run in found
        ]
    charts = [_by_count(runs, "Accuracy on test images", accuracy_axis(), drawn, percent)]
    if trained := _diagnosed(runs, "train_accuracy"):
        charts.append(_by_count(runs, _title("train_accuracy"), accuracy_axis(), trained, percent))
    lines = "; lines are the means of the classes' tenths, by frequency" if _crowded(runs) else ""
    text = f"Which classes fail, and whether those are the rare ones: a point is a class{lines}."
    return Section("accuracy", "Accuracy of each class against its training images", text, [Panels(charts)])


def diagnostics(runs: Runs) -> Section | None:
    """What the run's diagnostics found: norms of the classifier's rows and feature deviation."""
    norms, deviations = _diagnosed(runs, "classifier_norm"), _diagnosed(runs, "feature_deviation")
    if not norms:
        return None
    text = (
        "Why rare classes fail. A classifier whose rows grow with the number of images favours frequent classes; and "
        "features of training images that lie far from those of the class's test images do not generalise (CDT, Ye et "
        "al. 2020, section 3.3)."
    )
    charts = [
        _by_count(runs, _title("classifier_norm"), _axis("norm", norms), norms, number),
        _by_count(runs, _title("feature_deviation"), _axis("distance of the means", deviations), deviations, number),
    ]
    return Section("diagnostics", "Classifier norms and feature deviation", text, [Panels(charts)])


def _diagnosed(runs: Runs, name: DiagnosticName) -> list[ClassFigure]:
    """A figure of the diagnostics: of one run after each stage, of several after the last."""
    drawn = []
    for index, run in ended(runs):
        known = [(stage["name"], stage["diagnostics"][name]) for stage in run.stages if "diagnostics" in stage]
        if len(runs) == 1:
            drawn += [ClassFigure(run, stage, place, values) for place, (stage, values) in enumerate(known)]
        elif known:
            drawn.append(ClassFigure(run, run_name(runs, index), index, known[-1][1]))
    return drawn


def _title(name: DiagnosticName) -> str:
    """A diagnostic's name over a chart."""
    long = DIAGNOSTICS[name].long
    return long[0].upper() + long[1:]


def _axis(title: str, drawn: Sequence[ClassFigure]) -> Axis:
    return upward_axis(title, [value for each in drawn for value in each.values if value is not None])


def all_classes(runs: Runs) -> Section | None:
    """Every class with its figures: the charts' values as text."""
    if not ended(runs):
        return None

    def draw(index: int, run: ReportedRun) -> list[Part]:
        if not run.result:
            return [Text("The run has not ended.")]
        images = np.bincount(run.predictions.targets, minlength=len(run.counts)) if run.predictions else None
        columns = [(name, f"{path}/per_class_accuracy", f["per_class_accuracy"]) for name, path, f in tested(run)]
        extra = [
            (
                f"{DIAGNOSTICS[name].short}, {stage['name']}",
                f"stages/{place}/diagnostics/{name}",
                stage["diagnostics"][name],
                percent if DIAGNOSTICS[name].fraction else number,
            )
            for place, stage in enumerate(run.stages)
            if "diagnostics" in stage
            for name in _DIAGNOSTICS
        ]
        found = run.result.get("classes")
        if found:
            extra = [
                ("precision", "classes/precision", found["precision"], percent),
                ("F1", "classes/f1", found["f1"], percent),
                *extra,
            ]
        rows = []
        for label in run.order:
            row: list[str | Cell] = [run.names[label], shot_group(run.counts[label])]
            row.append(numeric(f"{run.counts[label]:,}"))
            row.append(numeric(f"{images[label]:,}" if images is not None else ""))
            row += [cell(values[label], f"{index}/{path}/{label}") for _, path, values in columns]
            if found:
                ends = found["recall_interval"][label]
                row.append(numeric("-".join(map(percent, ends)) if ends else ""))
            row += [cell(values[label], f"{index}/{path}/{label}", write) for _, path, values, write in extra]
            rows.append(row)
        titles = [f"accuracy, {name}" for name, _, _ in columns]
        titles += [*["95 % interval"] * bool(found), *(title for title, *_ in extra)]
        head = ["class", "group", "training images", "test images", *titles]
        return [folded(f"All {len(rows)} classes", head, rows, "Every class, the most frequent first")]

    text = (
        "The values of the charts by class, the most frequent first; fractions in percent. The interval of 95 percent "
        "(Wilson) says how far the accuracy may be off with so few test images; precision and F1 are those after "
        "calibration."
    )
    return Section("classes", "All classes", text, each_run(runs, draw))


def errors(runs: Runs) -> Section | None:
    """The test images that are taken for another class, the surest errors first."""
    if not any(run.predictions and run.predictions.errors[0] for run in runs):
        return None

    def draw(index: int, run: ReportedRun) -> list[Part]:
        if not run.predictions:
            return [Text("There are no predictions.")]
        number_of, surest = run.predictions.errors
        if not surest:
            return [Text("There is no error.")]
        rows: list[list[str | Cell]] = [
            [
                each.name,
                run.names[each.label],
                run.names[each.said],
                *(numeric(percent(share)) for share in (each.probability, each.own)),
            ]
            for each in surest
        ]
        head = ["image", "class", "taken for", "probability of that", "of its class"]
        said = f"{len(rows)} of {number_of:,} errors; errors.csv in the run's directory has all"
        return [folded(said, head, rows, "The surest errors, probabilities in percent")]

    text = (
        "Test images that the model is surest about and wrong: labels that may be mistaken, images that look like "
        "another class, and what the model has learnt wrongly."
    )
    return Section("errors", "The surest errors", text, each_run(runs, draw))


def unsure(runs: Runs) -> Section | None:
    """How many predictions are sure, how often these are right, and the classes without a threshold of their own."""
    told = [(index, run, run.result["unsure"]) for index, run in ended(runs) if run.result and "unsure" in run.result]
    if not told:
        return None
    rows: list[list[str | Cell]] = []
    lists: list[Part] = []
    for index, run, found in told:
        whose = [run_name(runs, index)] if len(runs) > 1 else []
        for name, place in (("held-out images", "held_out"), ("test images", "test")):
            path, part = f"{index}/unsure/{place}", found["held_out"] if place == "held_out" else found["test"]
            figures = [cell(part[key], f"{path}/{key}") for key in ("coverage", "precision")]
            rows.append([*whose, name, cell(found["precision"], f"{index}/unsure/precision"), *figures])
        head = ["class", "threshold", "sure", "of them right", "precision"]
        classes: list[list[str | Cell]] = [
            [
                run.names[label],
                numeric("always unsure" if (value := found["thresholds"][label]) is None else percent(value)),
                *map(numeric, (str(sure), str(right), percent(right / sure if sure else None))),
            ]
            for label in run.order
            for sure, right in [(found["test"]["sure"][label], found["test"]["right"][label])]
        ]
        for names, why in ((found["shared"], "share a threshold"), (found["always"], "are always unsure")):
            if names:
                lists.append(Folded(f"{len(names)} classes {why}", [Text(", ".join(names))]))
        caption = "Threshold of each class in percent, and the test images that are surely taken for it"
        lists.append(folded(f"Thresholds of {len(classes)} classes", head, classes, caption))
    text = (
        "A prediction is unsure where its probability is below the threshold of its class. Thresholds were chosen on "
        "held-out images, so that the predictions that are left are right as often as was asked for; on test images "
        "they may be right less often. Coverage is the share of images that are sure. In percent."
    )
    columns = [*(["run"] if len(runs) > 1 else []), "on", "asked", "coverage", "precision"]
    return Section("unsure", "Unsure predictions", text, [Table(columns, rows, "Sure predictions, in percent"), *lists])


def _final(run: ReportedRun) -> Figures:
    assert run.result is not None
    return run.result["after_calibration"]


def _crowded(runs: Runs) -> bool:
    return any(len(run.counts) > _FEW_CLASSES for run in runs)


def _by_count(
    runs: Runs, title: str, y: Axis, drawn: Sequence[ClassFigure], write: Callable[[float | None], str]
) -> Drawn:
    """A point for each class at its number of training images; all of one run but the last are hollow."""
    x = count_axis(runs)
    series = []
    for place, each in enumerate(drawn):
        known = [(label, value) for label in each.run.order if (value := each.values[label]) is not None]
        counts = each.run.counts
        points = [(float(counts[label]), value) for label, value in known]
        titles = [f"{each.run.names[label]}: {counts[label]} images, {write(value)}" for label, value in known]
        means = []
        if len(known) > _FEW_CLASSES:
            means = [
                (float(np.exp(np.log(part[:, 0]).mean())), float(part[:, 1].mean()))
                for part in np.array_split(np.array(points), _TENTHS)
            ]
        hollow = len(runs) == 1 and place + 1 < len(drawn)
        series.append(Series(each.name, points, each.style, titles, hollow=hollow, dash=each.style, trend=means))
    said = "; ".join(_said(each, write) for each in series)
    return Drawn(Chart(title, said, x, y, series, group_dividers(x), legend=len(runs) > 1))


def _said(series: Series, write: Callable[[float | None], str]) -> str:
    """A series in words: the means of the most frequent and the rarest third."""
    values = [value for _, value in series.points]
    third = max(1, len(values) // 3)
    head, tail = sum(values[:third]) / third, sum(values[-third:]) / third
    return f"{series.name}: {write(head)} for the most frequent third of the classes, {write(tail)} for the rarest"
