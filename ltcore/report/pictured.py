"""The sections in two dimensions and of images: features, decisions, what methods show, and the hardest classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ltcore.contract.figures import shot_groups
from ltcore.contract.reported import ReportTable
from ltcore.report.analysis import Floats, Integers, Offered
from ltcore.report.blocks import Card, Cards, Cell, Heading, Part, Row, Runs, Section, Shown, Table, Thumbnail
from ltcore.report.chart import Axis, Chart, Regions, Series
from ltcore.report.chosen import MOST, STYLES
from ltcore.report.data import ReportedRun
from ltcore.report.doubtful import DRAWN, PAIRS, Doubtful
from ltcore.report.labels import capital, number, percent, shortened
from ltcore.report.layout import each_run, folded
from ltcore.report.maps import MADE, SAMPLES, TEST, TRAINING, FeatureMap
from ltcore.report.material import HardClass
from ltcore.report.sampling import SEED
from ltcore.report.sections import GROUP_STYLES, NEUTRAL
from ltcore.runs.suspecting import DUPLICATE_COLUMNS, SUSPECT_COLUMNS

#: With more classes than these, their names would cover the points.
_NAMED_CLASSES = 20
_LETTERS = 16  # of a label on a map
_BELOW = 28  # letters below an example
_ROWS = 50  # of suspects and of pairs, in a table
#: Cells of the plot in which the decisions of the nearest points are drawn, across and down.
GRID = (90, 55)
#: Points that vote for a cell.
NEIGHBOURS = 5
#: How the points of each kind are drawn, those of the first below the others: the few training images of rare classes
#: above their test images.
_KINDS = (
    (MADE, "made", "made rows", partial(Series, tiny=True)),
    (TEST, "test", "test images", partial(Series, faint=True)),
    (TRAINING, "training", "training images", partial(Series, hollow=True)),
)


def axes(points: Floats) -> tuple[Axis, Axis]:
    """Axes without numbers around points [N, 2]."""
    low, high = points.min(0), points.max(0)
    room = 0.03 * (high - low) + 1e-9
    x, y = (Axis("", float(low[i] - room[i]), float(high[i] + room[i]), named=()) for i in (0, 1))
    return x, y


def features(runs: Runs) -> Section:
    """Feature maps of the runs, for as many as there are."""
    made = any(each.methods for one in runs for each in one.found.maps)
    of_made = ", small ones rows that methods made of training batches" if made else ""
    text = (
        f"How the network arranges images: outlined marks are training images, filled ones test images{of_made}. Where "
        "a rare class's test images lie far from its training images, its features do not generalise. t-SNE of at most "
        f"{SAMPLES} training and {SAMPLES} test images{f' and {SAMPLES} made rows' if made else ''}, drawn evenly over "
        f"the classes with seed {SEED}; distances between groups mean little."
    )
    if any(len(one.run.names) > _NAMED_CLASSES and not each.chosen for one in runs for each in one.found.maps):
        text += " So many classes have no names here: --classes draws some of them with their names."
    title, missing = "Features of training and test images (t-SNE)", "There are no features of this run."
    maps = each_run(runs, lambda one: one.beside([_map(one, found) for found in one.found.maps]), missing)
    return Section("features", title, text, maps)


def _map(one: Shown, found: FeatureMap) -> Chart:
    names, (x, y) = one.run.names, axes(found.points)
    short = shortened(names, _LETTERS)
    sets: list[tuple[str, int, NDArray[np.bool_]]] = [
        (short[label], style, found.labels == label) for style, label in zip(STYLES, found.chosen, strict=False)
    ]
    if not found.chosen:
        groups = np.array(shot_groups(one.run.counts))[found.labels]
        sets = [(group, style, groups == group) for group, style in GROUP_STYLES.items()]
    series, entries = [], [Series(name, [], style) for name, style, members in sets if members.any()]
    for kind, word, _, made in _KINDS:
        for name, style, members in sets:
            places = np.flatnonzero(members & (found.kinds == kind))
            places = places[np.argsort(found.labels[places], kind="stable")]  # a class's points say the same
            titles = [f"{names[label]}, {word}" for label in found.labels[places]]
            if len(places):
                series.append(made(f"{name}, {word}", found.points[places].tolist(), style, titles))
    numbers = [int((found.kinds == kind).sum()) for kind in (TRAINING, TEST, MADE)]
    entries += [made(words, [], NEUTRAL, shape=0) for kind, _, words, made in reversed(_KINDS) if numbers[kind]]
    labels = []
    for label in np.unique(found.labels).tolist() if len(names) <= _NAMED_CLASSES or found.chosen else ():
        real = (found.labels == label) & (found.kinds != MADE)
        if real.any():
            labels.append((*np.median(found.points[real], axis=0).tolist(), short[label]))
    said = f"{numbers[TRAINING]} training and {numbers[TEST]} test images of {one.name}"
    if found.methods:
        said += f", and {numbers[MADE]} rows that {' and '.join(found.methods)} made"
    return Chart(found.title, f"{said}.", x, y, series, labels=labels, entries=entries)


def decisions(runs: Runs) -> Section:
    """What each stage takes the test images of some classes for, in their place on a map (STG, figure 4)."""
    text = (
        "Test images of some classes on a map (t-SNE of their features), with the colour and the marker of their true "
        f"class. The background is what most of the {NEIGHBOURS} nearest points are taken for, and lines are where "
        "that changes: in truth, and as each stage decides that has these features. A boundary on a map is a picture "
        "of decisions, and not the classifier's own boundary."
    )
    parts = each_run(runs, _decided, "There is no map of decisions of this run.")
    return Section("boundaries", "Decisions on a map of test images", text, parts)


def _decided(one: Shown) -> Sequence[Part]:
    found = one.found.analysis.decisions
    if found is None:
        return []
    x, y = axes(found.points)
    short = shortened(one.run.names, _LETTERS)
    series = _series(found.points, found.targets, {label: short[label] for label in found.chosen})
    styles = dict(zip(found.chosen, STYLES, strict=False))
    drawn = []
    for name, said in (("", found.targets), *found.said.items()):
        right = percent(float((said == found.targets).mean()))
        title = f"Decisions after '{name}' ({right} % right)" if name else "True classes"
        words = f"{len(found.targets)} test images of {len(found.chosen)} classes."
        if name:
            words = f"{right} percent of {len(found.targets)} test images have their own class's background."
        behind = Regions(vote(found.points, said, x, y), styles)
        drawn.append(Chart(title, words, x, y, series, behind=behind, legend=True))
    return one.beside(drawn)


def _series(points: Floats, labels: Integers, names: Mapping[int, str]) -> list[Series]:
    """The points [N, 2] of each class with a name, if it has any."""
    found = []
    for style, (label, name) in zip(STYLES, names.items(), strict=False):
        own = points[labels == label].tolist()
        found += [Series(name, own, style, [name] * len(own))] if own else []
    return found


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


def shown(runs: Runs) -> Section:
    """What methods show of themselves (`ltcore.Method.reported`)."""

    def draw(one: Shown) -> list[Part]:
        parts = list[Part]()
        for each in one.found.analysis.offered:
            content = each.content
            parts += [Heading(f"{each.method}: {content.title}", 3 if one.alone else 4), content.text]
            if isinstance(content, ReportTable):
                rows = [[c if isinstance(c, str) else Cell(number(float(c), 4)) for c in row] for row in content.rows]
                parts.append(Table(list(content.columns), rows, content.title))
            else:
                parts += one.beside(_scatters(one, each))
        return parts

    text = (
        "What the methods of the run show of themselves, from training images. Vectors are brought to two dimensions "
        f"together (t-SNE, seed {SEED}), so that the panels of one drawing can be compared."
    )
    return Section("shown", "What methods show", text, each_run(runs, draw, "Its methods show nothing."))


def _scatters(one: Shown, found: Offered) -> list[Chart]:
    x, y = axes(np.concatenate([points for points, _ in found.panels.values()]))
    present = set(np.concatenate([labels for _, labels in found.panels.values()]).tolist())
    order = [label for label in (one.found.chosen or one.run.order) if label in present][:MOST]
    short = shortened(one.run.names, _LETTERS)
    names = {label: f"{short[label]} ({one.run.counts[label]})" for label in order}
    drawn = []
    for name, (points, labels) in found.panels.items():
        apart = number(found.apart[name], 2)
        said = f"{len(labels)} vectors of {len(np.unique(labels))} classes; mean silhouette of the classes {apart}."
        title = f"{capital(name)} (silhouette {apart})"
        drawn.append(Chart(title, said, x, y, _series(points, labels, names), legend=True))
    return drawn


def hardest(runs: Runs) -> Section:
    """The classes with the lowest accuracy, with examples."""

    def draw(one: Shown) -> list[Part]:
        run, found = one.run, one.found.hardest
        if not (found and run.result):
            return []
        accuracy = run.result["after_calibration"]["per_class_accuracy"]
        rows: list[Row] = []
        for each in found:
            share = one.cell(accuracy[each.label], f"after_calibration/per_class_accuracy/{each.label}")
            rows.append([run.names[each.label], share, Cell(f"{run.counts[each.label]:,}"), each.said(run.names)])
        head = ["class", "accuracy, percent", "training images", "taken for"]
        table = folded("As a table", head, rows, "The hardest classes")
        labels = shortened(run.names, _BELOW)
        return [Cards([_card(run, each, labels) for each in found], 3 if one.alone else 4), table]

    text = (
        "The classes with the lowest accuracy and what their test images were taken for, with some of these images: "
        "one for each class that they were taken for, the most frequent first."
    )
    parts = each_run(runs, draw, "No class has an error, or there are no predictions.")
    return Section("hardest", "The hardest classes", text, parts)


def _card(run: ReportedRun, found: HardClass, labels: Sequence[str]) -> Card:
    name = run.names[found.label]
    lines = [
        f"{found.right} of {found.images} test images recognised; {run.counts[found.label]:,} training images",
        f"Taken for {found.said(run.names)}",
    ]
    thumbnails = [
        Thumbnail(
            each.image, f"test image {each.index} of {name}, taken for {run.names[each.said]}",
            f"→ {labels[each.said]}", each.small,
        )
        for each in found.examples
        if each.image
    ]  # fmt: skip
    return Card(name, lines, thumbnails)


def suspects(runs: Runs) -> Section:
    """Suspect labels and near-duplicates of the runs that ``ltcore suspects`` has looked through."""

    def draw(one: Shown) -> list[Part]:
        return [] if one.found.doubtful is None else _doubtful(one.found.doubtful, 3 if one.alone else 4)

    text = (
        "Training images whose label is likely wrong, since a classifier that has not seen them is sure of another "
        "class, and images that nearly coincide. Look at them before you change a label."
    )
    parts = each_run(runs, draw, "'ltcore suspects' was not asked for this run.")
    return Section("doubtful", "Suspect labels and near-duplicates", text, parts)


def _doubtful(found: Doubtful, level: int) -> list[Part]:
    across = sum(row["split"] != row["other_split"] for row in found.pairs)
    conflicts = sum(row["class"] != row["other_class"] for row in found.pairs)
    pairs = (
        f"{len(found.pairs)} pairs of images nearly coincide, {across} of them across splits, which flatters figures, "
        f"and {conflicts} in two classes."
        if found.pairs
        else "No two images nearly coincide."
    )
    parts: list[Part] = [f"{len(found.suspects)} labels are suspect. {pairs}"]
    drawn = [row for row in found.suspects[:DRAWN] if ("train", row["image"]) in found.pictures]
    below = shortened([f"{row['class']} → {row['looks_like']}" for row in drawn], _BELOW)
    labels = [
        _thumbnail(found, ("train", row["image"]), f"{row['class']}, looks like {row['looks_like']}", text)
        for row, text in zip(drawn, below, strict=True)
    ]
    cards = [Card("The most suspicious labels", ["label → what it looks like"], labels)] if labels else []
    for row in found.pairs[:PAIRS]:
        sides = [(row["split"], row["image"], row["class"]), (row["other_split"], row["other"], row["other_class"])]
        if all((split, image) in found.pictures for split, image, _ in sides):
            pair = [_thumbnail(found, (of, name), f"of {label}", f"{of}: {label}") for of, name, label in sides]
            cards.append(Card("Nearly the same", [f"alike to {float(row['alike']):.3f}"], pair))
    if cards:
        parts.append(Cards(cards, level))
    for name, rows, columns in (
        ("Suspects", found.suspects, SUSPECT_COLUMNS), ("Pairs", found.pairs, DUPLICATE_COLUMNS)
    ):  # fmt: skip
        if shown := [[row[column] for column in columns] for row in rows[:_ROWS]]:
            parts.append(folded(f"{name}, the first {len(shown)}", columns, shown, name))
    return parts


def _thumbnail(found: Doubtful, image: tuple[str, str], said: str, below: str) -> Thumbnail:
    address, small = found.pictures[image]
    return Thumbnail(address, f"{image[1]}: {said}", below, small)
