"""The section on training: curves out of ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from ltcore.report.blocks import Cell, Drawn, Panels, Part, Section
from ltcore.report.chart import Axis, Chart, Series
from ltcore.report.data import ReportedRun
from ltcore.report.layout import (
    Runs,
    accuracy_axis,
    each_run,
    epoch_axis,
    folded,
    number,
    numeric,
    percent,
    run_name,
    upward_axis,
)


def _loss_curves(runs: Runs, x: Axis, dividers: Sequence[tuple[float, str]]) -> Drawn:
    """Loss on training images, and on held-out ones where these were looked at."""
    series = _lines(runs, "loss")
    for index, run in enumerate(runs):
        points = _held_out(run, "loss")
        if points:
            name = f"{run_name(runs, index)}, held-out images"
            series.append(Series(name, points, index, line=True, marks=len(points) == 1, dash=index + 2))
    title = "Loss on training and held-out images" if len(series) > len(runs) else "Training loss"
    return _curve(x, dividers, series, title)


def _held_out(run: ReportedRun, name: str) -> list[tuple[float, float]]:
    """A figure on held-out images at the epochs whose turn it was."""
    told = [(float(at), line["validation"][name]) for at, line in enumerate(run.epochs, 1) if "validation" in line]
    return [(at, value) for at, value in told if value is not None]


def training(runs: Runs) -> Section | None:
    """Training curves out of ``metrics.jsonl``."""
    if not any(run.epochs for run in runs):
        return None
    x = epoch_axis([1, max(len(run.epochs) for run in runs)])
    layouts = {tuple(stage_starts(run)) for run in runs}
    dividers = layouts.pop() if len(layouts) == 1 else ()
    drawn = (_loss_curves(runs, x, dividers), _rates(runs, x, dividers), _accuracies(runs, x))

    def draw(index: int, run: ReportedRun) -> list[Part]:
        names = ("loss", "lr", "seconds", "images_per_second")
        validated = any("validation" in line for line in run.epochs)
        rows: list[list[str | Cell]] = [
            [
                f"{line['stage']}, epoch {line['epoch'] + 1}",
                *(numeric(number(line[name], 4)) for name in names),
                *(numeric(percent(_mean_accuracy(line, split))) for split in ("train", "test")),
                *([numeric(_said_of_held_out(line))] if validated else []),
            ]
            for line in run.epochs
        ]
        head = ["epoch", "loss", "learning rate", "seconds", "images per second"]
        head += ["mean accuracy on training images", "on test images", *(["on held-out images"] if validated else [])]
        return [folded("Values", head, rows, "Training, epoch by epoch")]

    text = (
        "Mean loss of each epoch, and its last learning rate on a logarithmic scale; a vertical line is the beginning "
        "of a stage. With validate_every, loss and mean accuracy of the classes on held-out images too."
    )
    charts = Panels([each for each in drawn if each])
    return Section("training", "Training curves", text, [charts, *each_run(runs, draw)])


def stage_starts(run: ReportedRun) -> list[tuple[float, str]]:
    """Where each stage begins on the axis of epochs, and its name."""
    starts, at = [], 1
    for name, lines in groupby(run.epochs, key=lambda line: str(line["stage"])):
        starts.append((at - 0.5, name))
        at += len(list(lines))
    return starts


def _lines(runs: Runs, name: str) -> list[Series]:
    made = []
    for index, run in enumerate(runs):
        points = [(float(at), line[name]) for at, line in enumerate(run.epochs, 1) if line[name] is not None]
        made.append(Series(run_name(runs, index), points, index, line=True, marks=len(points) == 1, dash=index))
    return made


def _values(series: Sequence[Series]) -> list[float]:
    return [value for each in series for _, value in each.points]


def _curve(x: Axis, dividers: Sequence[tuple[float, str]], series: Sequence[Series], title: str) -> Drawn:
    said = "; ".join(
        f"{each.name}: from {number(each.points[0][1])} to {number(each.points[-1][1])}"
        for each in series
        if each.points
    )
    return Drawn(Chart(title, said, x, upward_axis("loss", _values(series)), series, dividers))


def _rates(runs: Runs, x: Axis, dividers: Sequence[tuple[float, str]]) -> Drawn | None:
    series = _lines(runs, "lr")
    positive = [value for value in _values(series) if value > 0]
    if not positive:
        return None
    floor = max(min(positive), max(positive) / 1e6)  # the very end of a cosine is as good as 0
    series = [
        Series(s.name, [p for p in s.points if p[1] >= floor], s.style, line=True, marks=s.marks, dash=s.dash)
        for s in series
    ]
    y = Axis("learning rate", floor / 1.5, max(positive) * 1.5, log=True)
    said = f"Between {number(floor)} and {number(max(positive))}."
    return Drawn(Chart("Learning rate", said, x, y, series, dividers))


def _accuracies(runs: Runs, x: Axis) -> Drawn | None:
    """Mean class accuracies by epoch, where the recipe asked for diagnostics in each, or for validations."""
    series = []
    for index, run in enumerate(runs):
        for place, split in enumerate(("train", "test")):
            means = [(float(at), _mean_accuracy(line, split)) for at, line in enumerate(run.epochs, 1)]
            points = [(at, mean) for at, mean in means if mean is not None]
            if points:
                name = f"{run_name(runs, index)}, {'training' if split == 'train' else split} images"
                series.append(Series(name, points, index, line=True, marks=len(points) == 1, dash=2 * place))
        if held := _held_out(run, "balanced_accuracy"):
            name = f"{run_name(runs, index)}, held-out images"
            series.append(Series(name, held, index, line=True, marks=len(held) == 1, dash=3))
    if not series:
        return None
    said = "; ".join(f"{each.name}: {100 * each.points[-1][1]:.1f} percent at the end" for each in series)
    return Drawn(Chart("Mean accuracy of the classes", said, x, accuracy_axis(), series))


def _said_of_held_out(line: dict[str, Any]) -> str:
    return percent(line["validation"]["balanced_accuracy"]) if "validation" in line else ""


def _mean_accuracy(line: dict[str, Any], split: str) -> float | None:
    """Mean accuracy of the classes at an epoch's end; None where no diagnostics were made then."""
    known = [value for value in line.get("diagnostics", {}).get(f"{split}_accuracy", ()) if value is not None]
    return sum(known) / len(known) if known else None
