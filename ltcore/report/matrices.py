"""The sections of the analysis: decision values, confusion before and after each stage, nearest class means."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ltcore.report.analysis import MATRIX_CLASSES, Decisions, Floats, confusion, shares
from ltcore.report.blocks import Cell, Folded, Part, Row, Runs, Section, Shown, Table
from ltcore.report.chart import Chart
from ltcore.report.classes import by_count
from ltcore.report.data import ReportedRun
from ltcore.report.labels import number, percent
from ltcore.report.layout import each_run, folded, headed, upward_axis
from ltcore.report.matrix import Matrix

_NONE = "There is no analysis of this run."
_LARGEST = 20


def changes(runs: Runs) -> Section:
    """The confusion at the first stage's end, and what each later stage and calibration changed (OFA, figure 7)."""
    text = (
        "What a stage, or calibration, does to the confusion: the matrix at the first stage's end, and by how many "
        "points each cell changes by the next one. Rows are classes, columns predictions, the most frequent class "
        "first; blue has grown, orange has shrunk. In percent of the class's test images."
    )
    missing = "There is no analysis of this run, or one stage and nothing behind it."
    return Section("changes", "Confusion before and after each stage", text, each_run(runs, _changes, missing))


def _changes(one: Shown) -> Sequence[Part]:
    run, stages = one.run, one.found.analysis.stages
    if len(stages) < 2 or run.predictions is None:
        return []
    targets, size = run.predictions.targets, len(run.counts)
    if size > MATRIX_CLASSES:
        return [f"With more than {MATRIX_CLASSES} classes the cells could not be seen."]
    rates = [shares(confusion(targets, each.predictions, size)) for each in stages]
    said = f"{_right(rates[0])} percent of a class's images are right on average."
    drawn, tables = [_matrix(run, f"At the end of '{stages[0].name}'", said, rates[0])], list[Part]()
    for stage, (before, after) in zip(stages[1:], pairwise(rates), strict=True):
        change = after - before
        if not np.nan_to_num(change).any():
            tables.append(f"'{stage.name}' changes no share of this matrix.")
            continue
        most = max(float(np.nanmax(np.abs(change))), 0.01)
        moved = 100 * float(np.nanmean(np.diag(change)))
        said = f"The diagonal changes by {moved:+.1f} points on average; the largest change is {100 * most:.1f} points."
        drawn.append(_matrix(run, f"What '{stage.name}' changes", said, change, low=-most, high=most, changes=True))
        tables.append(Folded(f"The largest changes by '{stage.name}'", [_largest(run, before, after)]))
    return [*one.beside(drawn), *tables]


def _matrix(run: ReportedRun, title: str, said: str, values: Floats, **how: Any) -> Matrix:
    """A matrix with the most frequent class first."""
    return Matrix(title, said, values[np.ix_(run.order, run.order)], [run.names[n] for n in run.order], **how)


def _right(rates: Floats) -> str:
    return percent(float(np.nanmean(np.diag(rates))))


def _largest(run: ReportedRun, before: Floats, after: Floats) -> Table:
    change = np.nan_to_num(after - before)
    rows: list[Row] = []
    for at in np.argsort(-np.abs(change), axis=None, kind="stable")[:_LARGEST].tolist():
        place = divmod(at, len(change))
        cells = (percent(before[place]), percent(after[place]), f"{100 * change[place]:+.1f}")
        rows += [[*(run.names[label] for label in place), *map(Cell, cells)]] if change[place] else []
    return Table(["class", "taken for", "before", "after", "change"], rows, "The largest changes, in percent")


def decisions(runs: Runs) -> Section:
    """Mean decision values and predictions of training and of test images (CDT, figures 4 and 5)."""
    text = (
        "What the classifier answers, averaged over the images of each class: on training images, and on test images. "
        "Where features of rare classes deviate, the value of a class's own images falls from training to test, and "
        "does so most for rare classes (CDT, Ye et al. 2020, figures 4 and 5). Both matrices of a pair have one scale."
    )
    title = "Decision values of training and test images"
    return Section("decisions", title, text, each_run(runs, _decisions, _NONE))


def _decisions(one: Shown) -> list[Part]:
    run, train, test = one.run, one.found.analysis.train, one.found.analysis.test
    if not (train and test):
        return []
    splits: tuple[tuple[str, Decisions], ...] = (("training", train), ("test", test))
    drawn = list[Part]()
    values = {split: each.values for split, each in splits if each.values is not None}
    low, high = (float(limit(list(values.values()))) if values else 0.0 for limit in (np.nanmin, np.nanmax))
    for split, each in values.items():
        own, other = np.diag(each), each + np.diag(np.full(len(each), np.nan))
        said = (
            f"On average {number(float(np.nanmean(own)))} for a class's own images and "
            f"{number(float(np.nanmean(other)))} for those of others."
        )
        how = {"low": low, "high": high, "columns": "decision for", "percent": False}
        drawn.append(_matrix(run, f"Mean decision values, {split} images", said, each, **how))
    for split, decided in splits:
        if decided.rates is not None:
            said = f"{_right(decided.rates)} percent of a class's images are right on average."
            drawn.append(_matrix(run, f"Predictions, {split} images", said, decided.rates))
    rows: list[Row] = []
    for label in run.order:
        cells = [f"{run.counts[label]:,}", *(number(float(each.own[label]), 4) for _, each in splits)]
        largest, of = _strongest(run, test.values, label)
        rows.append([run.names[label], *map(Cell, (*cells, largest)), of])
    head = ["class", "training images", "own value, training", "own value, test", "largest other value, test", "of"]
    said = f"{one.found.analysis.images:,} training images were looked at"
    table = folded(f"Values ({said})", head, rows, "Mean decision values of each class's images")
    return [_own(one, train.own, test.own), *one.beside(drawn), table]


def _strongest(run: ReportedRun, values: Floats | None, label: int) -> tuple[str, str]:
    """The largest mean decision value for another class, and that class."""
    if values is None or not np.isfinite(values[label]).all() or len(values) < 2:
        return "", ""
    row = values[label].copy()
    row[label] = -np.inf
    return number(float(row.max()), 4), run.names[int(row.argmax())]


def _own(one: Shown, train: Floats, test: Floats) -> Chart:
    values = [[None if np.isnan(value) else value for value in each.tolist()] for each in (train, test)]
    drawn = [(one.run, "training images", 0, values[0]), (one.run, "test images", 1, values[1])]
    y = upward_axis("mean decision value", [value for each in values for value in each if value is not None])
    fall = train - test
    mean, rarest = number(float(np.nanmean(fall))), number(float(fall[one.run.order[-1]]))
    said = f"From training to test the value falls by {mean} on average, by {rarest} for the rarest class."
    return by_count([one], "Decision value of a class for its own images", y, drawn, number, said)


def means(runs: Runs) -> Section:
    """The classifier against nearest means of training and of test features (CDT, table 1)."""
    rows: list[Row] = [
        [*one.own, each.name, *map(Cell, map(percent, (each.balanced, each.top1)))]
        for one in runs
        for each in one.found.analysis.means
    ]
    text = (
        "Analysis, and no result: the last row takes class means of test features, which uses test labels. It says how "
        "much better a classifier on these features could do if training features did not deviate from test features "
        "(CDT, Ye et al. 2020, table 1). Features are scaled to unit length. In percent of the test images."
    )
    table = Table(headed(runs, "classifier", "balanced", "top-1"), rows, "Nearest class means, analysis with test data")
    return Section("means", "Nearest class means (analysis with test data)", text, [table] if rows else [])
