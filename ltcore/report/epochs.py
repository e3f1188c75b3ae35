"""The section on classes over the epochs: the diagnostics of each epoch, by shot group or for chosen classes."""

from __future__ import annotations

from collections.abc import Sequence

from ltcore.contract.figures import DIAGNOSTICS, DiagnosticName, shot_groups
from ltcore.report.blocks import Drawn, Part, Section, Text
from ltcore.report.chart import Chart, Series
from ltcore.report.chosen import STYLES
from ltcore.report.curves import stage_starts
from ltcore.report.data import ReportedRun
from ltcore.report.layout import Runs, accuracy_axis, beside, each_run, epoch_axis, number, percent, upward_axis
from ltcore.report.logged import Points, values
from ltcore.report.material import Material
from ltcore.report.sections import GROUP_STYLES

#: Markers on a line, about; a marker for each epoch would hide it.
_MARKERS = 10


def by_class(runs: Runs, materials: Sequence[Material]) -> Section | None:
    """Accuracies, classifier norms and feature deviation over the epochs (CDT, figures 7 and 15)."""
    if not any("diagnostics" in line for run in runs for line in run.epochs):
        return None

    def draw(index: int, run: ReportedRun) -> list[Part]:
        chosen = materials[index].chosen
        charts, tables = list[Part](), list[Part]()
        for name, figure in DIAGNOSTICS.items():
            lines = _chosen(run, name, chosen) if chosen else _groups(run, name)
            if lines:
                title = f"{figure.long[0].upper()}{figure.long[1:]}, by epoch"
                charts.append(_chart(run, title, lines, figure.fraction))
                tables.append(values(run, title, [each[:2] for each in lines]))
        if not charts:
            return [Text("There are no diagnostics of each epoch, or the run has not ended and has no groups.")]
        return [*beside(runs, charts), *tables]

    text = (
        "How classes are learned: the diagnostics at each epoch's end, as means over the classes of a shot group, or "
        "for the classes that --classes names."
    )
    return Section("epochs", "Classes, epoch by epoch", text, each_run(runs, draw))


#: A line's name, its points and the number of its colour and marker.
Line = tuple[str, Points, int]


def _groups(run: ReportedRun, name: DiagnosticName) -> list[Line]:
    """A line for each shot group; none for a run that has not ended, whose counts are not known."""
    groups = shot_groups(run.counts)
    found = []
    for group, style in GROUP_STYLES.items():
        members = [label for label, own in enumerate(groups) if own == group]
        if points := _means(run, name, members):
            found.append((f"{group} ({len(members)} class{'' if len(members) == 1 else 'es'})", points, style))
    return found


def _chosen(run: ReportedRun, name: DiagnosticName, chosen: Sequence[int]) -> list[Line]:
    found = []
    for style, label in zip(STYLES, chosen, strict=False):
        title = f"{run.names[label]} ({run.counts[label]})" if run.counts else f"class {label}"
        if points := _means(run, name, [label]):
            found.append((title, points, style))
    return found


def _means(run: ReportedRun, name: DiagnosticName, labels: Sequence[int]) -> Points:
    """Means over some classes, by epoch; an epoch in which none of them has a value has no point."""
    points: Points = []
    for at, line in enumerate(run.epochs, 1):
        of_classes = line.get("diagnostics", {}).get(name, ())
        known = [of_classes[label] for label in labels if label < len(of_classes) and of_classes[label] is not None]
        if known:
            points.append((float(at), sum(known) / len(known)))
    return points


def _chart(run: ReportedRun, title: str, lines: Sequence[Line], fraction: bool) -> Drawn:
    series = []
    for name, points, style in lines:
        marked = points[:: max(1, len(points) // _MARKERS)]
        titles = [f"{name}, epoch {at:.0f}: {percent(value) if fraction else number(value)}" for at, value in marked]
        series.append(Series(name, marked, style, titles, dash=style, trend=points))
    epochs = [at for _, points, _ in lines for at, _ in points]
    x = epoch_axis(epochs)
    y = accuracy_axis() if fraction else upward_axis("value", [value for _, points, _ in lines for _, value in points])
    write = percent if fraction else number
    said = "; ".join(f"{name}: from {write(points[0][1])} to {write(points[-1][1])}" for name, points, _ in lines)
    starts = [start for start in stage_starts(run) if x.low < start[0] < x.high]
    return Drawn(Chart(title, said, x, y, series, starts, legend=True))
