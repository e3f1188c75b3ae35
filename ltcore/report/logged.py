"""The section on what methods logged: ``methods`` of the lines of ``metrics.jsonl`` (`ltcore.Method.logged`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ltcore.report.blocks import Cell, Drawn, Folded, Part, Section, Text
from ltcore.report.chart import Chart, Series
from ltcore.report.curves import stage_starts
from ltcore.report.data import ReportedRun
from ltcore.report.layout import Runs, beside, each_run, epoch_axis, folded, number, numeric, upward_axis

#: With more classes than these, a line is the mean of a tenth of them.
_FEW_CLASSES = 12
_TENTHS = 10

#: An epoch, counted through all stages, and a value.
Points = list[tuple[float, float]]


def methods(runs: Runs) -> Section | None:
    """Every value that a method logged, over the epochs: a line for each class, or for each tenth of the classes."""
    if not any("methods" in line for run in runs for line in run.epochs):
        return None

    def draw(index: int, run: ReportedRun) -> Sequence[Part]:
        drawn = [(title, lines) for title, lines in _logged(run) if lines]
        parts = [part for title, lines in drawn for part in (_chart(run, title, lines), values(run, title, lines))]
        return beside(runs, parts) if parts else [Text("Its methods logged nothing.")]

    text = (
        "What methods said of each epoch, such as a confidence that adapts: the values that held during it. The rarest "
        "class is the last line of a legend; a class without a value has no line."
    )
    return Section("methods", "Methods, epoch by epoch", text, each_run(runs, draw))


def _logged(run: ReportedRun) -> list[tuple[str, list[tuple[str, Points]]]]:
    """The title and the lines of every value, in the order in which they were first logged."""
    said = [(method, values) for line in run.epochs for method, values in line.get("methods", {}).items()]
    names = dict.fromkeys((method, name) for method, values in said for name in values)
    return [(f"{method}: {name}", _series(run, method, name)) for method, name in names]


def _series(run: ReportedRun, method: str, name: str) -> list[tuple[str, Points]]:
    """The lines of a value, the most frequent classes first; empty ones are left out."""
    found = {
        float(at): line["methods"][method][name]
        for at, line in enumerate(run.epochs, 1)
        if name in line.get("methods", {}).get(method, {})
    }
    if not isinstance(next(iter(found.values())), list):
        points = [(at, value) for at, value in found.items() if value is not None]
        return [(name, points)] if points else []
    classes = len(next(iter(found.values())))
    order = run.order or range(classes)  # a run that has not ended does not say how many images a class has
    parts: Sequence[Sequence[int]] = [[label] for label in order]
    titles = [f"{run.names[label]} ({run.counts[label]})" if run.counts else f"class {label}" for label in order]
    if classes > _FEW_CLASSES:
        parts = [part.tolist() for part in np.array_split(np.array(order), _TENTHS)]
        titles = [f"{len(part)} classes ({_range(run, part)})" for part in parts]
    lines = []
    for title, part in zip(titles, parts, strict=True):
        means: Points = []
        for at, values in found.items():
            known = [values[label] for label in part if values[label] is not None]
            if known:
                means.append((at, sum(known) / len(known)))
        if means:
            lines.append((title, means))
    return lines


def _range(run: ReportedRun, part: Sequence[int]) -> str:
    if not run.counts:
        return f"from {part[0]}"
    first, last = run.counts[part[0]], run.counts[part[-1]]
    return f"{first}" if first == last else f"{first} to {last}"


def _chart(run: ReportedRun, title: str, lines: Sequence[tuple[str, Points]]) -> Drawn:
    series = [
        Series(name, points, place, line=True, marks=len(points) == 1, dash=place)
        for place, (name, points) in enumerate(lines)
    ]
    epochs = [at for _, points in lines for at, _ in points]
    x = epoch_axis(epochs)
    y = upward_axis("value", [value for _, points in lines for _, value in points])
    said = "; ".join(f"{name}: from {number(points[0][1])} to {number(points[-1][1])}" for name, points in lines)
    starts = [start for start in stage_starts(run) if x.low < start[0] < x.high]
    return Drawn(Chart(title, said, x, y, series, starts, legend=True))


def values(run: ReportedRun, title: str, lines: Sequence[tuple[str, Points]]) -> Folded:
    """The points of a chart's lines as a folded table, a row for each epoch."""
    known = [dict(points) for _, points in lines]
    rows: list[list[str | Cell]] = [
        [f"{line['stage']}, epoch {line['epoch'] + 1}", *(numeric(number(each.get(float(at)))) for each in known)]
        for at, line in enumerate(run.epochs, 1)
        if any(float(at) in each for each in known)
    ]
    return folded(f"Values of {title}", ["epoch", *(name for name, _ in lines)], rows, title)
