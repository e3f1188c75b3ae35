"""The sections on the predictions of the test images: reliability and confusion."""

from __future__ import annotations

import numpy as np

from ltcore.evaluation.metrics import ECE_BINS
from ltcore.report.analysis import confusion as confusion_counts
from ltcore.report.blocks import Cell, Confusion, Drawn, Folded, Panels, Part, Section, Table, Text
from ltcore.report.chart import Axis, Chart, Series
from ltcore.report.data import Outcome, ReportedRun
from ltcore.report.layout import (
    MISSING,
    Runs,
    accuracy_axis,
    cell,
    each_run,
    ended,
    folded,
    numeric,
    percent,
    run_name,
)
from ltcore.report.matrix import Matrix

_LARGEST = 20
_CONFUSIONS = "The most frequent confusions"


def reliability(runs: Runs) -> Section | None:
    """Reliability diagrams and expected calibration errors."""
    found = [(index, run) for index, run in ended(runs) if run.predictions]
    if not found:
        return None
    kinds: list[tuple[str, Outcome, int, bool]] = []
    errors: list[list[str | Cell]] = []
    for index, run in found:
        assert run.predictions and run.result
        name = f"{run_name(runs, index)}, " if len(runs) > 1 else ""
        style = index if len(runs) > 1 else 0
        if run.predictions.before:
            kinds.append((f"{name}before calibration", run.predictions.before, style, True))
        when = "after calibration" if run.calibrated else "result"
        kinds.append((f"{name}{when}", run.predictions.after, style if len(runs) > 1 else 1, False))
        cells = [
            cell(run.result[when]["ece"], f"{index}/{when}/ece") for when in ("before_calibration", "after_calibration")
        ]
        errors.append([run_name(runs, index), *cells])
    charts = Panels([_diagram(kinds, len(runs) > 1), _shares(kinds, len(runs) > 1)])
    caption = "Expected calibration error, in percent"
    error = Table(["run", "before calibration", "after calibration"], errors, caption)
    bins = [
        folded(f"Values, {name}", ["confidence", "images", "mean confidence", "accuracy"], _bins(each), name)
        for name, each, _, _ in kinds
    ]
    text = (
        "Whether the network is right as often as it says: below the diagonal it is too sure of itself. The expected "
        f"calibration error is the mean distance from the diagonal over the test images, in {ECE_BINS} bins."
    )
    return Section("reliability", "Reliability and calibration error", text, [charts, error, *bins])


def _diagram(kinds: list[tuple[str, Outcome, int, bool]], legend: bool) -> Drawn:
    series = []
    for name, outcome, style, before in kinds:
        known = [
            (c / n, r / n, n) for n, r, c in zip(outcome.samples, outcome.right, outcome.confidence, strict=True) if n
        ]
        titles = [f"confidence {percent(x)}, accuracy {percent(y)}, {n:.0f} images" for x, y, n in known]
        points = [(x, y) for x, y, _ in known]
        series.append(Series(name, points, style, titles, line=True, dash=2 if before else 0, hollow=before))
    said = "; ".join(
        f"{name}: mean confidence {percent(sum(o.confidence) / sum(o.samples))}, "
        f"accuracy {percent(sum(o.right) / sum(o.samples))} percent"
        for name, o, _, _ in kinds
    )
    x = Axis("confidence, percent", 0, 1, percent=True)
    return Drawn(Chart("Accuracy by confidence", said, x, accuracy_axis(), series, diagonal=True, legend=legend))


def _shares(kinds: list[tuple[str, Outcome, int, bool]], legend: bool) -> Drawn:
    series = []
    for name, outcome, style, before in kinds:
        total = sum(outcome.samples)
        points = [((at + 0.5) / ECE_BINS, n / total) for at, n in enumerate(outcome.samples)]
        titles = [f"{n:.0f} images" for n in outcome.samples]
        series.append(Series(name, points, style, titles, line=True, dash=2 if before else 0, hollow=before))
    x = Axis("confidence, percent", 0, 1, percent=True)
    y = Axis("test images of the bin, percent", 0, 1, percent=True)
    said = "; ".join(f"{name}: {percent(o.samples[-1] / sum(o.samples))} in the highest bin" for name, o, _, _ in kinds)
    return Drawn(Chart("Test images by confidence", said, x, y, series, legend=legend))


def _bins(outcome: Outcome) -> list[list[str | Cell]]:
    rows: list[list[str | Cell]] = []
    for at, (n, right, confidence) in enumerate(zip(outcome.samples, outcome.right, outcome.confidence, strict=True)):
        means = [percent(confidence / n), percent(right / n)] if n else [MISSING, MISSING]
        rows.append(
            [f"{percent(at / ECE_BINS)} to {percent((at + 1) / ECE_BINS)}", *map(numeric, (f"{n:.0f}", *means))]
        )
    return rows


def confusion(runs: Runs) -> Section | None:
    """The confusion matrix, drawn by script.js from the page's data, and its largest cells as a table."""
    if not any(run.predictions for run in runs):
        return None

    def draw(index: int, run: ReportedRun) -> list[Part]:
        if not run.predictions:
            return [Text("There are no predictions.")]
        label = (
            f"Confusion matrix of {run_name(runs, index)}. Arrow keys move to a cell, plus and minus zoom, 0 shows all."
        )
        drawn, largest = Confusion(index, label, _matrix(run)), _largest(run)
        return [Panels([drawn, largest])] if len(runs) == 1 else [drawn, Folded(_CONFUSIONS, [largest])]

    text = (
        "What each class is taken for, as a share of its test images; rows are classes, columns predictions, both with "
        "the most frequent class first. Below the diagonal rare classes are taken for more frequent ones. Point at a "
        "cell or use the arrow keys; zoom with the buttons, with + and -, or with Ctrl and the wheel; drag to move."
    )
    return Section("confusion", "Confusion matrix", text, each_run(runs, draw))


def _matrix(run: ReportedRun) -> Matrix:
    """The confusion matrix as a figure of its own."""
    assert run.predictions
    size, order = len(run.counts), np.array(run.order)
    said = confusion_counts(run.predictions.targets, run.predictions.after.predictions, size)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = (said / said.sum(1, keepdims=True))[np.ix_(order, order)]
    text = f"{percent(float(np.nanmean(np.diag(rates))))} percent of a class's images are right on average."
    return Matrix("Confusion matrix", text, rates, [run.names[label] for label in run.order], 0, 1)


def _largest(run: ReportedRun) -> Table:
    assert run.predictions
    cells = [(images, target, said) for target, said, images in run.predictions.confusion if target != said]
    cells.sort(key=lambda each: (-each[0], each[1], each[2]))
    rows: list[list[str | Cell]] = [
        [run.names[target], run.names[said], numeric(str(images))] for images, target, said in cells[:_LARGEST]
    ]
    return Table(["class", "taken for", "test images"], rows, _CONFUSIONS)
