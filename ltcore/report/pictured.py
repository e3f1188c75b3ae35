"""The sections on features and images: t-SNE, and the hardest classes with what they were taken for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ltcore.contract.figures import shot_groups
from ltcore.report.blocks import Card, Cards, Cell, Drawn, Folded, Heading, Image, Part, Section, Text
from ltcore.report.chart import Chart, Series
from ltcore.report.chosen import STYLES
from ltcore.report.data import ReportedRun
from ltcore.report.labels import shortened
from ltcore.report.layout import Runs, beside, cell, each_run, folded, numeric, run_name
from ltcore.report.maps import MADE, SAMPLES, TEST, TRAINING, FeatureMap
from ltcore.report.material import Example, HardClass, Material
from ltcore.report.projected import axes
from ltcore.report.sampling import SEED
from ltcore.report.sections import GROUP_STYLES, NEUTRAL

#: With more classes than these, their names would cover the points.
_NAMED_CLASSES = 20
_SHOWN_CONFUSIONS = 3
_LETTERS = 16  # of a label on a map
_BELOW = 28  # letters below an example


def features(runs: Runs, materials: Sequence[Material]) -> Section | None:
    """Feature maps of the runs, for as many as there are."""
    if not any(material.maps for material in materials):
        return None

    def draw(index: int, run: ReportedRun) -> Sequence[Part]:
        drawn = [_map(runs, index, found) for found in materials[index].maps]
        return beside(runs, drawn) if drawn else [Text("There are no features of this run.")]

    made = any(each.methods for material in materials for each in material.maps)
    of_made = ", small ones rows that methods made of training batches" if made else ""
    text = (
        f"How the network arranges images: outlined marks are training images, filled ones test images{of_made}. Where "
        "a rare class's test images lie far from its training images, its features do not generalise. t-SNE of at most "
        f"{SAMPLES} training and {SAMPLES} test images{f' and {SAMPLES} made rows' if made else ''}, drawn evenly over "
        f"the classes with seed {SEED}; distances between groups mean little."
    )
    return Section("features", "Features of training and test images (t-SNE)", text, each_run(runs, draw))


#: How the points of each kind are drawn, those of the first below the others: the few training images of rare classes
#: above their test images.
_KINDS = (
    (MADE, "made", partial(Series, tiny=True)),
    (TEST, "test", partial(Series, faint=True)),
    (TRAINING, "training", partial(Series, hollow=True)),
)


def _map(runs: Runs, index: int, found: FeatureMap) -> Drawn:
    run = runs[index]
    x, y = axes(found.points)
    short = shortened(run.names, _LETTERS)
    if found.chosen:
        styled = zip(STYLES, found.chosen, strict=False)
        sets = [(short[label], style, found.labels == label) for style, label in styled]
    else:
        groups = np.array(shot_groups(run.counts))[found.labels]
        sets = [(group, style, groups == group) for group, style in GROUP_STYLES.items()]
    series = []
    for kind, word, made in _KINDS:
        for name, style, members in sets:
            places = np.flatnonzero(members & (found.kinds == kind))
            points = [(float(px), float(py)) for px, py in found.points[places]]
            titles = [f"{run.names[label]}, {word}" for label in found.labels[places]]
            if points:
                series.append(made(f"{name}, {word}", points, style, titles))
    names = []
    for label in np.unique(found.labels) if len(run.names) <= _NAMED_CLASSES or found.chosen else ():
        middle = np.median(found.points[(found.labels == label) & (found.kinds != MADE)], axis=0)
        if np.isfinite(middle).all():
            names.append((float(middle[0]), float(middle[1]), short[label]))
    numbers = [int((found.kinds == kind).sum()) for kind in (TRAINING, TEST, MADE)]
    said = f"{numbers[0]} training and {numbers[1]} test images of {run_name(runs, index)}"
    if found.methods:
        said += f", and {numbers[2]} rows that {' and '.join(found.methods)} made"
    return Drawn(Chart(found.title, f"{said}.", x, y, series, labels=names, entries=_entries(sets, found)))


def _entries(sets: Sequence[tuple[str, int, NDArray[np.bool_]]], found: FeatureMap) -> list[Series]:
    """A legend of classes or groups, and of the kinds of points, in place of every pair of them."""
    entries = [Series(name, [], style) for name, style, members in sets if members.any()]
    for kind, word, made in reversed(_KINDS):
        if (found.kinds == kind).any():
            what = {MADE: "made rows"}.get(kind, f"{word} images")
            entries.append(made(what, [], NEUTRAL, shape=0))
    return entries


def hardest(runs: Runs, materials: Sequence[Material]) -> Section | None:
    """The classes with the lowest accuracy, with examples."""
    if not any(material.hardest for material in materials):
        return None

    def draw(index: int, run: ReportedRun) -> list[Part]:
        found = materials[index].hardest
        if not found:
            return [Text("No class has an error." if run.predictions else "There are no predictions.")]
        short, level = shortened(run.names, _BELOW), 3 if len(runs) == 1 else 4
        return [Cards([_card(run, each, level, short) for each in found]), _table(index, run, found)]

    text = (
        "The classes with the lowest accuracy and what their test images were taken for, with some of these images: "
        "one for each class that they were taken for, the most frequent first."
    )
    return Section("hardest", "The hardest classes", text, each_run(runs, draw))


def _card(run: ReportedRun, found: HardClass, level: int, short: Sequence[str]) -> Card:
    said = f"{found.right} of {found.images} test images recognised; {run.counts[found.label]:,} training images"
    images = [_picture(run, found, each, each.image, short) for each in found.examples if each.image]
    return Card(Heading(run.names[found.label], level), [said, f"Taken for {_taken_for(run, found)}"], images)


def _taken_for(run: ReportedRun, found: HardClass) -> str:
    first = [f"{run.names[label]} ({images})" for label, images in found.taken_for[:_SHOWN_CONFUSIONS]]
    more = len(found.taken_for) - len(first)
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


def _picture(run: ReportedRun, found: HardClass, example: Example, address: str, short: Sequence[str]) -> Image:
    alt = f"test image {example.index} of {run.names[found.label]}, taken for {run.names[example.said]}"
    return Image(address, alt, f"→ {short[example.said]}", example.small)


def _table(index: int, run: ReportedRun, found: Sequence[HardClass]) -> Folded:
    rows: list[list[str | Cell]] = []
    for each in found:
        accuracy = run.result["after_calibration"]["per_class_accuracy"][each.label] if run.result else None
        path = f"{index}/after_calibration/per_class_accuracy/{each.label}"
        count = numeric(f"{run.counts[each.label]:,}")
        rows.append([run.names[each.label], cell(accuracy, path), count, _taken_for(run, each)])
    head = ["class", "accuracy, percent", "training images", "taken for"]
    return folded("As a table", head, rows, "The hardest classes")
