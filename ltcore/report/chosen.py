"""Which classes are drawn one by one: those that the reader names, or some over the whole range of frequencies."""

from __future__ import annotations

from collections.abc import Sequence

from ltcore.errors import RecipeError, nearest
from ltcore.report.chart import MARKERS
from ltcore.report.data import ReportedRun

#: Colours and markers of the chosen classes in their order: those that can be outlined first, a cross and a plus last.
STYLES = (0, 1, 2, 3, 6, 7, 4, 5)
#: No more classes than there are colours that can be told apart.
MOST = len(MARKERS)


def named(run: ReportedRun, asked: Sequence[str]) -> list[int]:
    """The labels of the classes that are asked for by names or numbers, in that order; a name comes first.

    Raises:
        RecipeError: the run has no such class, or there are more than can be told apart.
    """
    size, found = _size(run), list[int]()
    places = {name: label for label, name in reversed(list(enumerate(run.names)))}
    for text in asked:
        if text in places:
            found.append(places[text])
        elif text.isascii() and text.isdecimal() and int(text) < size:
            found.append(int(text))
        elif not run.result:
            raise RecipeError(
                f"--classes {text}: {run.path} has not ended, so that its classes go by number"
                + (f", from 0 to {size - 1}" if size else ", and as yet it has figures of none")
            )
        else:
            raise RecipeError(
                f"--classes {text}: {run.path} has no class of that name, and its numbers go from 0 to {size - 1}"
                f"{nearest(text, run.names)}"
            )
    found = list(dict.fromkeys(found))
    if len(found) > MOST:
        raise RecipeError(
            f"--classes: {len(found)} classes are named, and {MOST} at most can be told apart; name fewer"
        )
    return found


def spread(run: ReportedRun) -> list[int]:
    """Labels of at most `MOST` classes, the most frequent first and the rarest last, evenly by rank between them."""
    order, count = run.order, min(MOST, len(run.order))
    return [order[round(place * (len(order) - 1) / max(count - 1, 1))] for place in range(count)]


def _size(run: ReportedRun) -> int:
    """How many classes a run has, as far as it is known."""
    if run.result:
        return run.result["num_classes"]
    values = [line["diagnostics"]["test_accuracy"] for line in run.epochs if "diagnostics" in line]
    return len(values[-1]) if values else 0
