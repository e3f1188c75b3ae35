"""The sections of the analysis: decision values, confusion before and after each stage, nearest class means."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ltcore.report.analysis import MATRIX_CLASSES, Analysis, Floats, confusion
from ltcore.report.blocks import Cell, Drawn, Folded, Part, Section, Table, Text
from ltcore.report.chart import Chart, Series
from ltcore.report.data import ReportedRun
from ltcore.report.layout import (
    Runs,
    beside,
    count_axis,
    each_run,
    folded,
    group_dividers,
    number,
    numeric,
    percent,
    run_name,
    upward_axis,
)
from ltcore.report.material import Material
from ltcore.report.matrix import Matrix

_NONE = "There is no analysis of this run."
_LARGEST = 20


def changes(runs: Runs, materials: Sequence[Material]) -> Section | None:
    """The confusion at the first stage's end, and what each later stage and calibration changed (OFA, figure 7)."""
    if not any(_stages(material) > 1 for material in materials):
        return None

    def draw(index: int, run: ReportedRun) -> Sequence[Part]:
        found = materials[index].analysis
        if found is None or len(found.stages) < 2:
            return [Text(_NONE if found is None else "There is one stage, and nothing behind it.")]
        return _changes(runs, run, found)

    text = (
        "What a stage, or calibration, does to the confusion: the matrix at the first stage's end, and by how many "
        "points each cell changes by the next one. Rows are classes, columns predictions, the most frequent class "
        "first; blue has grown, orange has shrunk. In percent of the class's test images."
    )
    return Section("changes", "Confusion before and after each stage", text, each_run(runs, draw))


def _stages(material: Material) -> int:
    return len(material.analysis.stages) if material.analysis else 0


def _changes(runs: Runs, run: ReportedRun, found: Analysis) -> list[Part]:
    assert run.predictions is not None
    targets, size = run.predictions.targets, len(run.counts)
    if size > MATRIX_CLASSES:
        return [Text(f"With more than {MATRIX_CLASSES} classes the cells could not be seen.")]
    totals = np.bincount(targets, minlength=size)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = [confusion(targets, each.predictions, size) / totals for each in found.stages]
    order, names = np.array(run.order), [run.names[label] for label in run.order]
    drawn, tables = list[Part](), list[Part]()
    first = found.stages[0]
    right = percent(float(np.nanmean(np.diag(rates[0]))))
    title, said = f"At the end of '{first.name}'", f"{right} percent of a class's images are right on average."
    drawn.append(Drawn(Matrix(title, said, rates[0][np.ix_(order, order)], names, 0, 1)))
    for place, (before, after) in enumerate(pairwise(rates), 1):
        name = found.stages[place].name
        change = after - before
        if not np.nan_to_num(change).any():
            tables.append(Text(f"'{name}' changes no share of this matrix."))
            continue
        most = max(float(np.nanmax(np.abs(change))), 0.01)
        moved = 100 * float(np.nanmean(np.diag(change)))
        title = f"What '{name}' changes"
        said = f"The diagonal changes by {moved:+.1f} points on average; the largest change is {100 * most:.1f} points."
        drawn.append(Drawn(Matrix(title, said, change[np.ix_(order, order)], names, -most, most, changes=True)))
        tables.append(Folded(f"The largest changes by '{name}'", [_largest(run, before, after)]))
    return [*beside(runs, drawn), *tables]


def _largest(run: ReportedRun, before: Floats, after: Floats) -> Table:
    change = np.nan_to_num(after - before)
    places = [divmod(int(at), len(change)) for at in np.argsort(-np.abs(change), axis=None, kind="stable")[:_LARGEST]]
    rows: list[list[str | Cell]] = [
        [
            run.names[row],
            run.names[column],
            *(numeric(percent(float(each[row, column]))) for each in (before, after)),
            numeric(f"{100 * change[row, column]:+.1f}"),
        ]
        for row, column in places
        if change[row, column]
    ]
    return Table(["class", "taken for", "before", "after", "change"], rows, "The largest changes, in percent")


def decisions(runs: Runs, materials: Sequence[Material]) -> Section | None:
    """Mean decision values and predictions of training and of test images (CDT, figures 4 and 5)."""
    if not any(material.analysis and material.analysis.test for material in materials):
        return None

    def draw(index: int, run: ReportedRun) -> Sequence[Part]:
        found = materials[index].analysis
        return _decisions(runs, run, found) if found and found.test else [Text(_NONE)]

    text = (
        "What the classifier answers, averaged over the images of each class: on training images, and on test images. "
        "Where features of rare classes deviate, the value of a class's own images falls from training to test, and "
        "does so most for rare classes (CDT, Ye et al. 2020, figures 4 and 5). Both matrices of a pair have one scale."
    )
    title = "Decision values of training and test images"
    return Section("decisions", title, text, each_run(runs, draw))


def _decisions(runs: Runs, run: ReportedRun, found: Analysis) -> list[Part]:
    assert found.train and found.test
    splits = (("training", found.train), ("test", found.test))
    own, drawn = _own(run, splits[0][1].own, splits[1][1].own), list[Part]()
    order, names = np.array(run.order), [run.names[label] for label in run.order]
    values = [(split, each.values) for split, each in splits if each.values is not None]
    if values:
        low = min(float(np.nanmin(each)) for _, each in values)
        high = max(float(np.nanmax(each)) for _, each in values)
        for split, each in values:
            other = each + np.diag(np.full(len(each), np.nan))
            said = (
                f"On average {number(float(np.nanmean(np.diag(each))))} for a class's own images and "
                f"{number(float(np.nanmean(other)))} for those of others."
            )
            title, shown = f"Mean decision values, {split} images", each[np.ix_(order, order)]
            drawn.append(Drawn(Matrix(title, said, shown, names, low, high, "decision for", percent=False)))
        for split, decided in splits:
            assert decided.rates is not None
            right = percent(float(np.nanmean(np.diag(decided.rates))))
            said = f"{right} percent of a class's images are right on average."
            shown = decided.rates[np.ix_(order, order)]
            drawn.append(Drawn(Matrix(f"Predictions, {split} images", said, shown, names, 0, 1)))
    rows: list[list[str | Cell]] = []
    for label in run.order:
        cells = [number(float(each.own[label]), 4) if np.isfinite(each.own[label]) else "" for _, each in splits]
        largest, of = _strongest(run, found.test.values, label)
        rows.append([run.names[label], *map(numeric, (f"{run.counts[label]:,}", *cells, largest)), of])
    head = ["class", "training images", "own value, training", "own value, test", "largest other value, test", "of"]
    caption = "Mean decision values of each class's images"
    said = f"{found.images:,} training images were looked at"
    return [own, *beside(runs, drawn), folded(f"Values ({said})", head, rows, caption)]


def _strongest(run: ReportedRun, values: Floats | None, label: int) -> tuple[str, str]:
    """The largest mean decision value for another class, and that class."""
    if values is None or not np.isfinite(values[label]).all() or len(values) < 2:
        return "", ""
    row = values[label].copy()
    row[label] = -np.inf
    return number(float(row.max()), 4), run.names[int(row.argmax())]


def _own(run: ReportedRun, train: Floats, test: Floats) -> Drawn:
    x = count_axis([run])
    series = []
    for style, (name, values) in enumerate((("training images", train), ("test images", test))):
        known = [label for label in run.order if np.isfinite(values[label])]
        points = [(float(run.counts[label]), float(values[label])) for label in known]
        titles = [f"{run.names[label]}: {run.counts[label]} training images, {values[label]:.4g}" for label in known]
        series.append(Series(name, points, style, titles, hollow=name.startswith("training")))
    y = upward_axis("mean decision value", [value for each in series for _, value in each.points])
    fall = train - test
    mean, rarest = number(float(np.nanmean(fall))), number(float(fall[run.order[-1]]))
    said = f"From training to test the value falls by {mean} on average, by {rarest} for the rarest class."
    title = "Decision value of a class for its own images"
    return Drawn(Chart(title, said, x, y, series, group_dividers(x)))


def means(runs: Runs, materials: Sequence[Material]) -> Section | None:
    """The classifier against nearest means of training and of test features (CDT, table 1)."""
    rows: list[list[str | Cell]] = []
    for index, material in enumerate(materials):
        for each in material.analysis.means if material.analysis else ():
            own = [run_name(runs, index)] if len(runs) > 1 else []
            cells = [numeric(percent(value)) for value in (each.balanced, each.top1)]
            rows.append([*own, each.name, *cells])
    if not rows:
        return None
    text = (
        "Analysis, and no result: the last row takes class means of test features, which uses test labels. It says how "
        "much better a classifier on these features could do if training features did not deviate from test features "
        "(CDT, Ye et al. 2020, table 1). Features are scaled to unit length. In percent of the test images."
    )
    head = [*(["run"] if len(runs) > 1 else []), "classifier", "balanced", "top-1"]
    caption = "Nearest class means, analysis with test data"
    return Section("means", "Nearest class means (analysis with test data)", text, [Table(head, rows, caption)])
