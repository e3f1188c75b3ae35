"""The sections on the predictions of the test images: reliability, confusion, and the surest errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from ltcore.evaluation.metrics import ECE_BINS
from ltcore.report.analysis import confusion as counted
from ltcore.report.analysis import shares
from ltcore.report.blocks import Cell, Confusion, Folded, Panels, Part, Row, Runs, Section, Shown, Table
from ltcore.report.chart import Chart, Series
from ltcore.report.data import Outcome
from ltcore.report.labels import MISSING, percent
from ltcore.report.layout import accuracy_axis, each_run, ended, folded
from ltcore.report.matrix import Matrix

_LARGEST = 20
_CONFUSIONS = "The most frequent confusions"
#: A name, what was said, the number of a colour, and whether it is without calibration.
_Kind: TypeAlias = tuple[str, Outcome, int, bool]


def reliability(runs: Runs) -> Section:
    """Reliability diagrams and expected calibration errors."""
    kinds: list[_Kind] = []
    errors: list[Row] = []
    for one in ended(runs):
        said, result = one.run.predictions, one.run.result
        if said and result:
            name = "" if one.alone else f"{one.name}, "
            if said.before:
                kinds.append((f"{name}before calibration", said.before, one.index, True))
            when = "after calibration" if one.run.calibrated else "result"
            kinds.append((f"{name}{when}", said.after, 1 if one.alone else one.index, False))
            ece = {"before_calibration": result["before_calibration"], "after_calibration": result["after_calibration"]}
            errors.append([one.name, *(one.cell(each["ece"], f"{name}/ece") for name, each in ece.items())])
    caption = "Expected calibration error, in percent"
    error = Table(["run", "before calibration", "after calibration"], errors, caption)
    heads = ["confidence", "images", "mean confidence", "accuracy"]
    bins = [folded(f"Values, {name}", heads, _bins(each), name) for name, each, _, _ in kinds]
    text = (
        "Whether the network is right as often as it says: below the diagonal it is too sure of itself. The expected "
        f"calibration error is the mean distance from the diagonal over the test images, in {ECE_BINS} bins."
    )
    parts: list[Part] = [Panels([_diagram(kinds, len(runs) > 1), _shares(kinds, len(runs) > 1)]), error, *bins]
    return Section("reliability", "Reliability and calibration error", text, parts if kinds else [])


def _by_bin(outcome: Outcome) -> list[tuple[float, float, float]]:
    """Images, mean confidence and accuracy of each bin; NaN where it has no images."""
    n, right, confidence = map(np.array, (outcome.samples, outcome.right, outcome.confidence))
    with np.errstate(invalid="ignore"):
        return list(zip(n.tolist(), (confidence / n).tolist(), (right / n).tolist(), strict=True))


def _series(kinds: Sequence[_Kind], points: Sequence[Sequence[tuple[float, float, str]]]) -> list[Series]:
    return [
        Series(
            name,
            [(x, y) for x, y, _ in found],
            style,
            [said for *_, said in found],
            line=True,
            dash=2 if before else 0,
            hollow=before,
        )
        for (name, _, style, before), found in zip(kinds, points, strict=True)
    ]


def _diagram(kinds: Sequence[_Kind], legend: bool) -> Chart:
    points = [
        [(x, y, f"confidence {percent(x)}, accuracy {percent(y)}, {n:.0f} images") for n, x, y in _by_bin(outcome) if n]
        for _, outcome, _, _ in kinds
    ]
    said = "; ".join(
        f"{name}: mean confidence {percent(sum(o.confidence) / sum(o.samples))}, "
        f"accuracy {percent(sum(o.right) / sum(o.samples))} percent"
        for name, o, _, _ in kinds
    )
    x, series = accuracy_axis("confidence, percent"), _series(kinds, points)
    return Chart("Accuracy by confidence", said, x, accuracy_axis(), series, diagonal=True, legend=legend)


def _shares(kinds: Sequence[_Kind], legend: bool) -> Chart:
    points = [
        [((at + 0.5) / ECE_BINS, n / sum(o.samples), f"{n:.0f} images") for at, n in enumerate(o.samples)]
        for _, o, _, _ in kinds
    ]
    x, y = accuracy_axis("confidence, percent"), accuracy_axis("test images of the bin, percent")
    said = "; ".join(f"{name}: {percent(o.samples[-1] / sum(o.samples))} in the highest bin" for name, o, _, _ in kinds)
    return Chart("Test images by confidence", said, x, y, _series(kinds, points), legend=legend)


def _bins(outcome: Outcome) -> list[Row]:
    rows: list[Row] = []
    for at, (n, *means) in enumerate(_by_bin(outcome)):
        cells = [f"{n:.0f}", *(percent(each) if n else MISSING for each in means)]
        rows.append([f"{percent(at / ECE_BINS)} to {percent((at + 1) / ECE_BINS)}", *map(Cell, cells)])
    return rows


def confusion(runs: Runs) -> Section:
    """The confusion matrix, drawn by script.js from the page's data, and its largest cells as a table."""

    def draw(one: Shown) -> list[Part]:
        run = one.run
        if not run.predictions:
            return []
        said = counted(run.predictions.targets, run.predictions.after.predictions, len(run.counts))
        rates, names = shares(said)[np.ix_(run.order, run.order)], [run.names[label] for label in run.order]
        right = f"{percent(float(np.nanmean(np.diag(rates))))} percent of a class's images are right on average."
        label = f"Confusion matrix of {one.name}. Arrow keys move to a cell, plus and minus zoom, 0 shows all."
        drawn = Confusion(one.index, label, Matrix("Confusion matrix", right, rates, names))
        cells = [(-images, target, said) for target, said, images in run.predictions.confusion if target != said]
        rows: list[Row] = [
            [run.names[target], run.names[said], Cell(str(-n))] for n, target, said in sorted(cells)[:_LARGEST]
        ]
        largest = Table(["class", "taken for", "test images"], rows, _CONFUSIONS)
        return [Panels([drawn, largest])] if one.alone else [drawn, Folded(_CONFUSIONS, [largest], printed=True)]

    text = (
        "What each class is taken for, as a share of its test images; rows are classes, columns predictions, both with "
        "the most frequent class first. Below the diagonal rare classes are taken for more frequent ones."
    )
    controls = (
        "Point at a cell or use the arrow keys; zoom with the buttons, with + and -, or with Ctrl and the wheel; drag "
        "to move."
    )
    parts = each_run(runs, draw, "There are no predictions.")
    return Section("confusion", "Confusion matrix", text, parts, controls)


def errors(runs: Runs) -> Section:
    """The test images that are taken for another class, the surest errors first."""

    def draw(one: Shown) -> list[Part]:
        count, surest = one.run.predictions.errors if one.run.predictions else (0, [])
        names = one.run.names
        rows: list[Row] = [
            [each.name, names[each.label], names[each.said], *map(Cell, map(percent, (each.probability, each.own)))]
            for each in surest
        ]
        head = ["image", "class", "taken for", "probability of that", "of its class"]
        said = f"{len(rows)} of {count:,} errors; errors.csv in the run's directory has all"
        caption = "The surest errors, probabilities in percent"
        return [folded(said, head, rows, caption, printed=True)] if rows else []

    text = (
        "Test images that the model is surest about and wrong: labels that may be mistaken, images that look like "
        "another class, and what the model has learnt wrongly."
    )
    return Section("errors", "The surest errors", text, each_run(runs, draw, "There is no error, or no prediction."))
