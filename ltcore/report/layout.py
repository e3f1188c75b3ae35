"""What the sections of a report share: panels for each run, tables and axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ltcore.contract.figures import SHOT_GROUPS
from ltcore.report.blocks import Folded, Heading, Panel, Panels, Part, Row, Runs, Shown, Table
from ltcore.report.chart import Axis


def each_run(runs: Runs, draw: Callable[[Shown], Sequence[Part]], missing: str) -> Sequence[Part]:
    """What is drawn of every run; of several, side by side with the run's name above.

    Where one of several runs gives nothing, the words `missing` stand in its place.
    """
    drawn = [draw(one) for one in runs]
    if len(runs) == 1 or not any(drawn):
        return drawn[0]
    panels = [
        Panel([Heading(one.name, key=one.index), *(parts or [missing])], one.letter)
        for one, parts in zip(runs, drawn, strict=True)
    ]
    return [Panels(panels, narrow=len(panels) > 2)]


def ended(runs: Runs) -> list[Shown]:
    """The runs that have ended."""
    return [one for one in runs if one.run.result]


def headed(runs: Runs, *heads: str) -> list[str]:
    """The heads of a table of all runs, whose rows begin with `Shown.own`."""
    return [*(["run"] if len(runs) > 1 else []), *heads]


def folded(summary: str, head: Sequence[str], rows: Sequence[Row], caption: str, printed: bool = False) -> Folded:
    """A table that is folded away."""
    return Folded(summary, [Table(head, rows, caption)], printed=printed)


def count_axis(runs: Runs) -> Axis:
    """Training images of a class, on a logarithmic scale with some room on both sides."""
    counts = [count for one in runs for count in one.run.counts]
    return Axis("training images of the class", min(counts) / 1.25, max(counts) * 1.25, log=True)


def group_dividers(axis: Axis) -> list[tuple[float, str]]:
    """Where the shot groups but the rarest begin on an axis of training images, each with its name."""
    edges = [(group.fewest - 0.5, group.name) for group in reversed(SHOT_GROUPS) if group.fewest]
    return [(edge, name) for edge, name in edges if axis.low < edge < axis.high]


def accuracy_axis(title: str = "accuracy, percent") -> Axis:
    """From 0 to 100 percent."""
    return Axis(title, 0, 1, percent=True)


def upward_axis(title: str, values: Sequence[float]) -> Axis:
    """From 0, or the smallest of some values where that is less, to a little more than the largest."""
    return Axis(title, min([*values, 0]), 1.05 * max([*values, 1e-9]))
