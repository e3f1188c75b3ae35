"""The sections on features and images: t-SNE, and the hardest classes with what they were taken for."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

import numpy as np

from ltcore.contract.figures import shot_groups
from ltcore.report.chart import Axis, Chart, Series
from ltcore.report.data import ReportedRun
from ltcore.report.layout import Runs, cell, each_run, run_name, section
from ltcore.report.markup import Content, details, element, table
from ltcore.report.material import SAMPLES, SEED, Example, FeatureMap, HardClass, Material
from ltcore.report.sections import GROUP_STYLES

#: With more classes than these, their names would cover the points.
_NAMED_CLASSES = 20
_SHOWN_CONFUSIONS = 3


def features(runs: Runs, materials: Sequence[Material]) -> Element | None:
    """Feature maps of the runs, for as many as there are."""
    if not any(material.features for material in materials):
        return None

    def draw(index: int, run: ReportedRun) -> list[Content]:
        found = materials[index].features
        return [_map(runs, index, found)] if found else [element("p", "There are no features of this run.")]

    text = (
        "How the network arranges images: outlined marks are training images, filled ones test images. Where a rare "
        "class's test images lie far from its training images, its features do not generalise. t-SNE of at most "
        f"{SAMPLES} training and {SAMPLES} test images, drawn evenly over the classes with seed {SEED}; distances "
        "between groups mean little."
    )
    return section("features", "Features of training and test images (t-SNE)", text, each_run(runs, draw))


def _map(runs: Runs, index: int, found: FeatureMap) -> Element:
    run = runs[index]
    low, high = found.points.min(0), found.points.max(0)
    room = 0.03 * (high - low) + 1e-9
    x, y = (Axis("", float(low[i] - room[i]), float(high[i] + room[i]), named=()) for i in (0, 1))
    groups = np.array(shot_groups(run.counts))[found.labels]
    series = []
    for group, style in GROUP_STYLES.items():
        for tested in (True, False):  # the few training images of rare classes above their test images
            chosen = np.flatnonzero((groups == group) & (found.tested == tested))
            points = [(float(px), float(py)) for px, py in found.points[chosen]]
            titles = [run.names[label] for label in found.labels[chosen]]
            split = "test" if tested else "training"
            if points:
                series.append(Series(f"{group}, {split}", points, style, titles, hollow=not tested, faint=tested))
    names = []
    for label in np.unique(found.labels) if len(run.names) <= _NAMED_CLASSES else ():
        middle = np.median(found.points[found.labels == label], axis=0)
        names.append((float(middle[0]), float(middle[1]), run.names[label][:16]))
    trained = int((~found.tested).sum())
    said = f"{trained} training and {len(found.labels) - trained} test images of {run_name(runs, index)}."
    return Chart("Features at the end of the last stage", said, x, y, series, labels=names).draw()


def hardest(runs: Runs, materials: Sequence[Material]) -> Element | None:
    """The classes with the lowest accuracy, with examples."""
    if not any(material.hardest for material in materials):
        return None

    def draw(index: int, run: ReportedRun) -> list[Content]:
        found = materials[index].hardest
        if not found:
            return [element("p", "No class has an error." if run.predictions else "There are no predictions.")]
        level = "h3" if len(runs) == 1 else "h4"
        return [element("ul", *(_item(run, each, level) for each in found), class_="hard"), _table(index, run, found)]

    text = (
        "The classes with the lowest accuracy and what their test images were taken for, with some of these images: "
        "one for each class that they were taken for, the most frequent first."
    )
    return section("hardest", "The hardest classes", text, each_run(runs, draw))


def _item(run: ReportedRun, found: HardClass, level: str) -> Element:
    heading = element(level, run.names[found.label])
    count = run.counts[found.label]
    said = f"{found.right} of {found.images} test images recognised; {count:,} training images"
    shown = [each for each in found.examples if each.image]
    images = element("ul", *(_picture(run, found, each) for each in shown), class_="examples") if shown else None
    return element("li", heading, element("p", said), element("p", f"Taken for {_taken_for(run, found)}"), images)


def _taken_for(run: ReportedRun, found: HardClass) -> str:
    first = [f"{run.names[label]} ({images})" for label, images in found.taken_for[:_SHOWN_CONFUSIONS]]
    more = len(found.taken_for) - len(first)
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


def _picture(run: ReportedRun, found: HardClass, example: Example) -> Element:
    name, said = run.names[found.label], run.names[example.said]
    alt = f"test image {example.index} of {name}, taken for {said}"
    small = "small" if example.small else None
    return element("li", element("img", src=example.image, alt=alt, class_=small), f"→ {said}")


def _table(index: int, run: ReportedRun, found: Sequence[HardClass]) -> Element:
    rows: list[list[Content]] = []
    for each in found:
        accuracy = run.result["after_calibration"]["per_class_accuracy"][each.label] if run.result else None
        path = f"{index}/after_calibration/per_class_accuracy/{each.label}"
        count = element("td", f"{run.counts[each.label]:,}", class_="number")
        rows.append([run.names[each.label], cell(accuracy, path), count, _taken_for(run, each)])
    head = ["class", "accuracy, percent", "training images", "taken for"]
    return details("As a table", table(head, rows, "The hardest classes"))
