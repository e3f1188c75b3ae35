"""The sections in two dimensions beside the map of features: decisions of each stage, and what methods show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ltcore.report.analysis import DecisionMap, Floats, Integers, Offered
from ltcore.report.blocks import Drawn, Heading, Part, Section, Table, Text
from ltcore.report.chart import Axis, Chart, Regions, Series
from ltcore.report.chosen import MOST, STYLES
from ltcore.report.data import ReportedRun
from ltcore.report.labels import shortened
from ltcore.report.layout import Runs, beside, each_run, number, numeric, percent
from ltcore.report.material import Material
from ltcore.report.sampling import SEED

#: Cells of the plot in which the decisions of the nearest points are drawn, across and down.
GRID = (90, 55)
#: Points that vote for a cell.
NEIGHBOURS = 5
_NAME_LETTERS = 16


def decisions(runs: Runs, materials: Sequence[Material]) -> Section | None:
    """What each stage takes the test images of some classes for, in their place on a map (STG, figure 4)."""
    if not any(material.analysis and material.analysis.decisions for material in materials):
        return None

    def draw(index: int, run: ReportedRun) -> Sequence[Part]:
        found = materials[index].analysis
        if found is None or found.decisions is None:
            return [Text("There is no map of decisions of this run.")]
        return beside(runs, _panels(run, found.decisions))

    text = (
        "Test images of some classes on a map (t-SNE of their features), with the colour and the marker of their true "
        f"class. The background is what most of the {NEIGHBOURS} nearest points are taken for, and lines are where "
        "that changes: in truth, and as each stage decides that has these features. A boundary on a map is a picture "
        "of decisions, and not the classifier's own boundary."
    )
    return Section("boundaries", "Decisions on a map of test images", text, each_run(runs, draw))


def _panels(run: ReportedRun, found: DecisionMap) -> list[Drawn]:
    x, y = axes(found.points)
    short = shortened(run.names, _NAME_LETTERS)
    names = {label: short[label] for label in found.chosen}
    styles = dict(zip(found.chosen, STYLES, strict=False))
    series = [each for each in _series(found.points, found.targets, found.chosen, names) if each.points]
    drawn = []
    for name, said in (("truth", found.targets), *found.said.items()):
        right = percent(float((said == found.targets).mean()))
        words = f"{right} percent of {len(found.targets)} test images have their own class's background."
        title = "True classes" if name == "truth" else f"Decisions after '{name}' ({right} % right)"
        if name == "truth":
            words = f"{len(found.targets)} test images of {len(found.chosen)} classes."
        behind = Regions(vote(found.points, said, x, y), styles)
        drawn.append(Drawn(Chart(title, words, x, y, series, behind=behind, legend=True)))
    return drawn


def _series(
    points: Floats, labels: Integers, chosen: Sequence[int], names: dict[int, str], tiny: bool = False
) -> list[Series]:
    made = []
    for style, label in zip(STYLES, chosen, strict=False):
        own = [(float(px), float(py)) for px, py in points[labels == label]]
        made.append(Series(names[label], own, style, [names[label]] * len(own), tiny=tiny))
    return made


def axes(points: Floats) -> tuple[Axis, Axis]:
    """Axes without numbers around points [N, 2]."""
    low, high = points.min(0), points.max(0)
    room = 0.03 * (high - low) + 1e-9
    x, y = (Axis("", float(low[i] - room[i]), float(high[i] + room[i]), named=()) for i in (0, 1))
    return x, y


def vote(points: Floats, said: Integers, x: Axis, y: Axis) -> NDArray[np.int64]:
    """What most of the nearest points are taken for, for each cell of `GRID`: [rows, columns], the upper row first."""
    across, down = GRID
    columns = x.low + (np.arange(across) + 0.5) / across * (x.high - x.low)
    rows = y.high - (np.arange(down) + 0.5) / down * (y.high - y.low)
    cells = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    spread = np.array([x.high - x.low, y.high - y.low])
    distances = (((cells[:, None] - points[None]) / spread) ** 2).sum(2)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    # Of equally frequent ones the nearest: a Counter keeps the order in which it met them.
    winners = [Counter(row).most_common(1)[0][0] for row in said[nearest].tolist()]
    return np.array(winners, dtype=np.int64).reshape(down, across)


def shown(runs: Runs, materials: Sequence[Material]) -> Section | None:
    """What methods show of themselves (`ltcore.Method.reported`)."""
    if not any(material.analysis and material.analysis.offered for material in materials):
        return None

    def draw(index: int, run: ReportedRun) -> list[Part]:
        found = materials[index].analysis
        if found is None or not found.offered:
            return [Text("Its methods show nothing.")]
        parts: list[Part] = []
        for each in found.offered:
            heading = Heading(f"{each.method}: {each.content.title}", 3 if len(runs) == 1 else 4)
            parts += [heading, Text(each.content.text)]
            parts += beside(runs, _scatters(run, each, materials[index].chosen)) if each.panels else [_table(each)]
        return parts

    text = (
        "What the methods of the run show of themselves, from training images. Vectors are brought to two dimensions "
        f"together (t-SNE, seed {SEED}), so that the panels of one drawing can be compared."
    )
    return Section("shown", "What methods show", text, each_run(runs, draw))


def _scatters(run: ReportedRun, found: Offered, chosen: Sequence[int]) -> list[Drawn]:
    every = np.concatenate([points for points, _ in found.panels.values()])
    x, y = axes(every)
    present = np.unique(np.concatenate([labels for _, labels in found.panels.values()])).tolist()
    order = [label for label in (chosen or run.order) if label in present][:MOST]
    short = shortened(run.names, _NAME_LETTERS)
    names = {label: f"{short[label]} ({run.counts[label]})" for label in order}
    drawn = []
    for name, (points, labels) in found.panels.items():
        apart = number(found.apart[name], 2)
        said = f"{len(labels)} vectors of {len(np.unique(labels))} classes; mean silhouette of the classes {apart}."
        series = [each for each in _series(points, labels, order, names) if each.points]
        title = f"{name[0].upper()}{name[1:]} (silhouette {apart})"
        drawn.append(Drawn(Chart(title, said, x, y, series, legend=True)))
    return drawn


def _table(found: Offered) -> Table:
    content = found.content
    rows = [
        [cell if isinstance(cell, str) else numeric(number(float(cell), 4)) for cell in row]
        for row in content.rows  # type: ignore[union-attr]
    ]
    return Table(list(content.columns), rows, content.title)  # type: ignore[union-attr]
