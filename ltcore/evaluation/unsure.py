"""Which predictions count as sure: a threshold for each class, chosen on held-out images.

With a threshold t the predictions of a class with probability t or more are sure, the others unsure. Of the thresholds
at which the sure predictions of held-out images are right as often as was asked for, the lowest is taken. It leaves the
fewest images unsure. This is a class-wise reject option after Chow (1970), with the thresholds of the classes apart as
in Fumera, Roli and Giacinto (2000).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltcore.contract.result import SurenessRecord, UnsureRecord
from ltcore.evaluation.metrics import rank

#: A threshold lies this far below the probability that it is chosen for, so that rounding makes no image unsure; less
#: where another image's probability is nearer.
_HAIR = 1e-4


@dataclass(frozen=True)
class Thresholds:
    """From which probability on the predictions of each class are sure.

    Attributes:
        precision: how often sure predictions are right on the images that the thresholds were chosen on, at least.
        values: [C]; None for a class whose predictions are always unsure.
    """

    precision: float
    values: tuple[float | None, ...]

    @property
    def lowest(self) -> Tensor:
        """[C] float64; above 1 for a class whose predictions are always unsure."""
        return torch.tensor([2.0 if value is None else value for value in self.values], dtype=torch.float64)

    def unsure(self, predictions: Tensor, probability: Tensor) -> Tensor:
        """Which predictions are unsure, [N] bool.

        Args:
            predictions: [N] int64.
            probability: [N] float64, that of the predicted class.
        """
        return probability < self.lowest[predictions]


def choose(logits: Tensor, targets: Tensor, precision: float, least: int) -> tuple[Thresholds, list[int], list[int]]:
    """Thresholds from held-out images.

    A class with fewer than `least` predictions among them shares one threshold with the other such classes, chosen on
    all their predictions together. No threshold is taken with fewer than `least` sure predictions above it. A class,
    or those that share, for which none is left is always unsure.

    Args:
        logits: [M, C], calibrated.
        targets: [M] int64.
        precision: how often sure predictions shall be right, in (0, 1].
        least: how many sure predictions a threshold rests on, at least 1.

    Returns:
        The thresholds, the classes that share one, and those that are always unsure.

    Raises:
        RunError: a logit is not finite.
    """
    predictions, _, probability = rank(logits, targets)
    right, classes = predictions == targets, logits.shape[1]
    counts = torch.bincount(predictions, minlength=classes)
    shared = counts < least
    values: list[float | None] = [None] * classes
    for label in torch.nonzero(~shared).flatten().tolist():
        own = predictions == label
        values[label] = lowest(probability[own], right[own], precision, least)
    pooled = shared[predictions]
    common = lowest(probability[pooled], right[pooled], precision, least)
    sharing = torch.nonzero(shared).flatten().tolist()
    for label in sharing:
        values[label] = common
    always = [label for label, value in enumerate(values) if value is None]
    return Thresholds(precision, tuple(values)), sharing, always


def lowest(probability: Tensor, right: Tensor, precision: float, least: int) -> float | None:
    """The lowest threshold at which predictions are right as often as asked for.

    Args:
        probability: of each prediction, [K] float64.
        right: whether it is right, [K] bool.
        precision: the asked share of right ones, of those at the threshold and above.
        least: how many these have to be.

    Returns:
        A hair less than one of the probabilities, and more than the next lower one; None where no threshold does.
    """
    ordered, order = probability.sort(descending=True, stable=True)
    hits = right[order].cumsum(0).double()
    number = torch.arange(1, len(ordered) + 1, dtype=torch.float64)
    # Of equal probabilities all are sure or none is: only the last of them is a place for a threshold.
    last = torch.ones_like(right)
    last[:-1] = ordered[:-1] > ordered[1:]
    # A product, so that 9 of 10 reach 0.9 whatever the quotient rounds to.
    good = torch.nonzero(last & (number >= least) & (hits >= precision * number - 1e-9)).flatten()
    if not len(good):
        return None
    place = int(good[-1])
    below = float(ordered[place + 1]) if place + 1 < len(ordered) else 0.0
    return float(ordered[place]) - min((float(ordered[place]) - below) / 2, _HAIR)


def sureness(thresholds: Thresholds, logits: Tensor, targets: Tensor) -> SurenessRecord:
    """How many images are sure, and how often these are right.

    Args:
        thresholds: see there.
        logits: [N, C], calibrated, N >= 1.
        targets: [N] int64.
    """
    predictions, _, probability = rank(logits, targets)
    kept = ~thresholds.unsure(predictions, probability)
    hits = kept & (predictions == targets)
    sure, right = (torch.bincount(predictions[each], minlength=logits.shape[1]) for each in (kept, hits))
    return {
        "coverage": kept.double().mean().item(),
        "precision": right.sum().item() / sure.sum().item() if kept.any() else None,
        "sure": sure.tolist(),
        "right": right.tolist(),
    }


def record(
    asked: tuple[float, int],
    held_out: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    class_names: Sequence[str],
) -> tuple[Thresholds, UnsureRecord]:
    """Thresholds, and what ``result.json`` says of them.

    Args:
        asked: precision and least number of images, see `choose`.
        held_out: logits [M, C] and targets [M] to choose on.
        test: logits [N, C] and targets [N] of test images.
        class_names: C names.
    """
    thresholds, shared, always = choose(*held_out, *asked)
    return thresholds, {
        "precision": asked[0],
        "least": asked[1],
        "images": len(held_out[1]),
        "thresholds": list(thresholds.values),
        "shared": [class_names[label] for label in shared],
        "always": [class_names[label] for label in always],
        "held_out": sureness(thresholds, *held_out),
        "test": sureness(thresholds, *test),
    }


def summary(found: SurenessRecord, precision: float) -> str:
    """``71.0 % are sure, and 97.2 % of these right (95 % was asked for)``."""
    share = f"{100 * found['coverage']:.1f} % are sure"
    asked = f"({100 * precision:g} % was asked for)"
    if found["precision"] is None:
        return f"none is sure {asked}"
    return f"{share}, and {100 * found['precision']:.1f} % of these right {asked}"
