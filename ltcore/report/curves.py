"""The sections out of ``metrics.jsonl``: training curves, diagnostics of each epoch, and what methods logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from ltcore.contract.figures import DIAGNOSTICS, shot_groups
from ltcore.report.blocks import Cell, Folded, Panels, Part, Row, Runs, Section, Shown
from ltcore.report.chart import Axis, Chart, Points, Series
from ltcore.report.chosen import STYLES
from ltcore.report.data import ReportedRun
from ltcore.report.labels import capital, number, percent
from ltcore.report.layout import accuracy_axis, each_run, folded, upward_axis
from ltcore.report.sections import GROUP_STYLES

_MARKERS = 10  # on a line, about; a marker for each epoch would hide it
#: With more classes than these, a line of what methods logged is the mean of a tenth of them.
_FEW_CLASSES = 12
_TENTHS = 10
Dividers = Sequence[tuple[float, str]]
#: A line's name and its points.
Line = tuple[str, Points]


def training(runs: Runs) -> Section:
    """Training curves of all runs, and the values of each."""
    layouts = {tuple(_starts(one.run)) for one in runs}
    starts = layouts.pop() if len(layouts) == 1 else ()
    x = _epochs([1, max(len(one.run.epochs) for one in runs)])
    charts = [chart for chart in (_losses(runs, x, starts), _rates(runs, x, starts), _accuracies(runs, x)) if chart]
    text = (
        "Mean loss of each epoch, and its last learning rate on a logarithmic scale; a vertical line is the beginning "
        "of a stage. With validate_every, loss and mean accuracy of the classes on held-out images too."
    )
    tables = each_run(runs, _values, "No epoch has ended.")
    return Section("training", "Training curves", text, [Panels(charts), *tables] if tables else [])


def _values(one: Shown) -> list[Part]:
    validated = any("validation" in line for line in one.run.epochs)
    rows: list[Row] = []
    for line in one.run.epochs:
        cells = [number(line[name], 4) for name in ("loss", "lr", "seconds", "images_per_second")]
        cells += [percent(_mean(line, split)) for split in ("train", "test")]
        if validated:
            cells.append(percent(line["validation"]["balanced_accuracy"]) if "validation" in line else "")
        rows.append([_epoch(line), *map(Cell, cells)])
    head = ["epoch", "loss", "learning rate", "seconds", "images per second"]
    head += ["mean accuracy on training images", "on test images", *(["on held-out images"] if validated else [])]
    return [folded("Values", head, rows, "Training, epoch by epoch")] if rows else []


def _losses(runs: Runs, x: Axis, starts: Dividers) -> Chart:
    """Loss on training images, and on held-out ones where these were looked at."""
    series = [_curve(one.name, _by_epoch(one.run, lambda line: line["loss"]), one.index) for one in runs]
    for one in runs:
        if points := _held_out(one.run, "loss"):
            series.append(_curve(f"{one.name}, held-out images", points, one.index, one.index + 2))
    title = "Loss on training and held-out images" if len(series) > len(runs) else "Training loss"
    lines = [(each.name, each.points) for each in series]
    return Chart(title, _said(lines), x, upward_axis("loss", _ends(lines)), series, starts)


def _rates(runs: Runs, x: Axis, starts: Dividers) -> Chart | None:
    rates = [_by_epoch(one.run, lambda line: line["lr"]) for one in runs]
    positive = [value for points in rates for _, value in points if value > 0]
    if not positive:
        return None
    floor = max(min(positive), max(positive) / 1e6)  # the very end of a cosine is as good as 0
    kept = [[(at, value) for at, value in points if value >= floor] for points in rates]
    series = [_curve(one.name, points, one.index) for one, points in zip(runs, kept, strict=True)]
    y = Axis("learning rate", floor / 1.5, max(positive) * 1.5, log=True)
    return Chart("Learning rate", f"Between {number(floor)} and {number(max(positive))}.", x, y, series, starts)


def _accuracies(runs: Runs, x: Axis) -> Chart | None:
    """Mean class accuracies by epoch, where the recipe asked for diagnostics in each, or for validations."""
    series = []
    for one in runs:
        for dash, (split, words) in enumerate((("train", "training"), ("test", "test"))):
            if points := _by_epoch(one.run, lambda line, split=split: _mean(line, split)):  # type: ignore[misc]
                series.append(_curve(f"{one.name}, {words} images", points, one.index, 2 * dash))
        if points := _held_out(one.run, "balanced_accuracy"):
            series.append(_curve(f"{one.name}, held-out images", points, one.index, 3))
    said = "; ".join(f"{each.name}: {percent(each.points[-1][1])} percent at the end" for each in series)
    return Chart("Mean accuracy of the classes", said, x, accuracy_axis(), series) if series else None


def by_class(runs: Runs) -> Section:
    """The diagnostics of each epoch, by shot group or for chosen classes (CDT, figures 7 and 15)."""

    def draw(one: Shown) -> Sequence[Part]:
        run, chosen = one.run, one.found.chosen
        charts, tables = list[Part](), list[Part]()
        for name, figure in DIAGNOSTICS.items():
            members = [([label], style, _named(run, label)) for label, style in zip(chosen, STYLES, strict=False)]
            if not chosen:
                groups = shot_groups(run.counts)  # none while the run has not ended
                for group, style in GROUP_STYLES.items():
                    own = [label for label, each in enumerate(groups) if each == group]
                    members.append((own, style, f"{group} ({len(own)} class{'' if len(own) == 1 else 'es'})"))
            of_epoch = [line.get("diagnostics", {}).get(name, ()) for line in run.epochs]
            known = [(title, points, style) for own, style, title in members if (points := _means(of_epoch, own))]
            if known:
                title = f"{capital(figure.long)}, by epoch"
                write, series = percent if figure.fraction else number, []
                for words, points, style in known:
                    marked = points[:: max(1, len(points) // _MARKERS)]
                    titles = [f"{words}, epoch {at:.0f}: {write(value)}" for at, value in marked]
                    series.append(Series(words, marked, style, titles, dash=style, trend=points))
                lines = [(words, points) for words, points, _ in known]
                y = accuracy_axis() if figure.fraction else None
                charts.append(_chart(run, title, lines, series, y, write))
                tables.append(_table(run, title, lines))
        return [*one.beside(charts), *tables]

    text = (
        "How classes are learned: the diagnostics at each epoch's end, as means over the classes of a shot group, or "
        "for the classes that --classes names."
    )
    missing = "There are no diagnostics of each epoch, or the run has not ended and has no groups."
    return Section("epochs", "Classes, epoch by epoch", text, each_run(runs, draw, missing))


def methods(runs: Runs) -> Section:
    """Every value that a method logged (`ltcore.Method.logged`): a line for each class or tenth of the classes."""

    def draw(one: Shown) -> Sequence[Part]:
        said = [(key, values) for line in one.run.epochs for key, values in line.get("methods", {}).items()]
        parts = list[Part]()
        for key, name in dict.fromkeys((key, name) for key, values in said for name in values):
            of_epoch = [line.get("methods", {}).get(key, {}).get(name) for line in one.run.epochs]
            if lines := _logged(one.run, name, of_epoch):
                title = f"{key}: {name}"
                series = [_curve(words, points, place) for place, (words, points) in enumerate(lines)]
                parts += [_chart(one.run, title, lines, series), _table(one.run, title, lines)]
        return one.beside(parts)

    text = (
        "What methods said of each epoch, such as a confidence that adapts: the values that held during it. The rarest "
        "class is the last line of a legend; a class without a value has no line."
    )
    return Section("methods", "Methods, epoch by epoch", text, each_run(runs, draw, "Its methods logged nothing."))


def _logged(run: ReportedRun, name: str, of_epoch: Sequence[Any]) -> list[Line]:
    """The lines of a value, the most frequent classes first; empty ones are left out."""
    first = next(value for value in of_epoch if value is not None)
    if not isinstance(first, list):
        return [(name, points)] if (points := _means([[value] for value in of_epoch], [0])) else []
    order = run.order or range(len(first))  # a run that has not ended does not say how many images a class has
    parts = [(_named(run, label), [label]) for label in order]
    if len(first) > _FEW_CLASSES:
        tenths = [part.tolist() for part in np.array_split(np.array(order), _TENTHS)]
        parts = [(f"{len(part)} classes ({_range(run, part)})", part) for part in tenths]
    return [(title, points) for title, part in parts if (points := _means([each or () for each in of_epoch], part))]


def _named(run: ReportedRun, label: int) -> str:
    return f"{run.names[label]} ({run.counts[label]})" if run.counts else f"class {label}"


def _range(run: ReportedRun, part: Sequence[int]) -> str:
    if not run.counts:
        return f"from {part[0]}"
    first, last = run.counts[part[0]], run.counts[part[-1]]
    return f"{first}" if first == last else f"{first} to {last}"


def _starts(run: ReportedRun) -> list[tuple[float, str]]:
    """Where each stage begins on the axis of epochs, and its name."""
    starts, at = [], 1
    for name, lines in groupby(run.epochs, key=lambda line: str(line["stage"])):
        starts.append((at - 0.5, name))
        at += len(list(lines))
    return starts


def _epoch(line: dict[str, Any]) -> str:
    return f"{line['stage']}, epoch {line['epoch'] + 1}"


def _epochs(found: Sequence[float]) -> Axis:
    return Axis("epoch, counted through all stages", min(found) - 1, max(found) + 1, whole=True)


def _by_epoch(run: ReportedRun, read: Callable[[dict[str, Any]], float | None]) -> Points:
    """Epochs, counted through all stages from 1, with what is read of their lines; nothing where that is None."""
    return [(float(at), value) for at, line in enumerate(run.epochs, 1) if (value := read(line)) is not None]


def _held_out(run: ReportedRun, name: str) -> Points:
    return _by_epoch(run, lambda line: line.get("validation", {}).get(name))


def _mean(line: dict[str, Any], split: str) -> float | None:
    """Mean accuracy of the classes at an epoch's end; None where no diagnostics were made then."""
    known = [value for value in line.get("diagnostics", {}).get(f"{split}_accuracy", ()) if value is not None]
    return sum(known) / len(known) if known else None


def _means(of_epoch: Sequence[Sequence[float | None]], labels: Sequence[int]) -> Points:
    """Means over some classes, by epoch; an epoch in which none of them has a value has no point."""
    points = []
    for at, values in enumerate(of_epoch, 1):
        known = [value for label in labels if label < len(values) and (value := values[label]) is not None]
        if known:
            points.append((float(at), sum(known) / len(known)))
    return points


def _curve(name: str, points: Points, style: int, dash: int | None = None) -> Series:
    """A line; a point alone is marked."""
    return Series(name, points, style, line=True, marks=len(points) == 1, dash=style if dash is None else dash)


def _ends(lines: Sequence[Line]) -> list[float]:
    return [value for _, points in lines for _, value in points]


def _said(lines: Sequence[Line], write: Callable[[float | None], str] = number) -> str:
    return "; ".join(f"{name}: from {write(seen[0][1])} to {write(seen[-1][1])}" for name, seen in lines if seen)


def _chart(
    run: ReportedRun,
    title: str,
    lines: Sequence[Line],
    series: Sequence[Series],
    y: Axis | None = None,
    write: Callable[[float | None], str] = number,
) -> Chart:
    x = _epochs([at for _, points in lines for at, _ in points])
    starts = [start for start in _starts(run) if x.low < start[0] < x.high]
    return Chart(title, _said(lines, write), x, y or upward_axis("value", _ends(lines)), series, starts, legend=True)


def _table(run: ReportedRun, title: str, lines: Sequence[Line]) -> Folded:
    """The points of a chart's lines as a folded table, a row for each epoch."""
    known = [dict(points) for _, points in lines]
    rows: list[Row] = [
        [_epoch(line), *(Cell(number(each.get(float(at)))) for each in known)]
        for at, line in enumerate(run.epochs, 1)
        if any(float(at) in each for each in known)
    ]
    return folded(f"Values of {title}", ["epoch", *(name for name, _ in lines)], rows, title)
