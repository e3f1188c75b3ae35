"""What is known of each class after an evaluation, and how far a run's figures may be off."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ltcore.contract.figures import SHOT_GROUPS, shot_groups
from ltcore.contract.result import ClassFigures, Interval, Intervals
from ltcore.evaluation.intervals import mean_of, wilson


def class_figures(predictions: Tensor, targets: Tensor, classes: int) -> ClassFigures:
    """Support, precision, recall and F1 of every class, with intervals.

    Args:
        predictions: [N] int64.
        targets: [N] int64.
        classes: C.

    Returns:
        See `ltcore.contract.result.ClassFigures`.
    """
    support, predicted, correct = _counts(predictions, targets, classes)
    return {
        "support": support.tolist(),
        "predicted": predicted.tolist(),
        "correct": correct.tolist(),
        "recall": _fractions(correct, support),
        "recall_interval": _intervals(correct, support),
        "precision": _fractions(correct, predicted),
        "precision_interval": _intervals(correct, predicted),
        "f1": _fractions(2 * correct, support + predicted),
    }


def intervals(predictions: Tensor, targets: Tensor, class_counts: Sequence[int]) -> Intervals:
    """The intervals of the figures that are proportions, or means of the classes' proportions.

    Args:
        predictions: [N] int64.
        targets: [N] int64.
        class_counts: training images of each class, [C]; they decide the shot groups.
    """
    support, _, correct = _counts(predictions, targets, len(class_counts))
    groups = shot_groups(class_counts)

    def of_group(name: str) -> Interval | None:
        members = torch.tensor([group == name for group in groups])
        return mean_of(correct[members], support[members])

    top1 = wilson(correct.sum()[None], support.sum()[None])[0].tolist()
    many, medium, few = (of_group(group.name) for group in SHOT_GROUPS)
    balanced = mean_of(correct, support)
    assert balanced is not None, "there is a test image"
    return {"top1": top1, "many": many, "medium": medium, "few": few, "balanced_accuracy": balanced}


def _counts(predictions: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Test images of each class, predictions of it, and those that are right, each [C]."""
    counted = (targets, predictions, targets[predictions == targets])
    support, predicted, correct = (torch.bincount(each, minlength=classes) for each in counted)
    return support, predicted, correct


def _fractions(parts: Tensor, wholes: Tensor) -> list[float | None]:
    found = (parts.double() / wholes.double()).tolist()
    return [value if whole else None for value, whole in zip(found, wholes.tolist(), strict=True)]


def _intervals(parts: Tensor, wholes: Tensor) -> list[Interval | None]:
    found = wilson(parts, wholes).tolist()
    return [ends if whole else None for ends, whole in zip(found, wholes.tolist(), strict=True)]
