"""What the figures of a run are called and where they are shown, and the shot groups with their thresholds.

Everything that names, orders or heads figures reads it here. What is computed stands in `ltcore.evaluation.metrics` and
`ltcore.evaluation.diagnostics`, and where it is kept in `ltcore.contract.result`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

ShotName: TypeAlias = Literal["many", "medium", "few"]
FigureName: TypeAlias = Literal["top1", "top5", "many", "medium", "few", "balanced_accuracy", "macro_f1", "ece"]
DiagnosticName: TypeAlias = Literal["train_accuracy", "test_accuracy", "classifier_norm", "feature_deviation"]


@dataclass(frozen=True)
class ShotGroup:
    """Classes with a similar number of training images.

    Attributes:
        name: its name, also in ``result.json``.
        fewest: the smallest number of training images of its classes.
        most: the largest; None for any number.
    """

    name: ShotName
    fewest: int
    most: int | None

    @property
    def rule(self) -> str:
        """Its numbers of images in a few signs: ``> 100``, ``20..100`` or ``< 20``."""
        if self.most is None:
            return f"> {self.fewest - 1}"
        return f"{self.fewest}..{self.most}" if self.fewest else f"< {self.most + 1}"

    @property
    def words(self) -> str:
        """The same in words: ``more than 100``, ``20 to 100`` or ``fewer than 20``."""
        if self.most is None:
            return f"more than {self.fewest - 1}"
        return f"{self.fewest} to {self.most}" if self.fewest else f"fewer than {self.most + 1}"


#: The shot groups, most frequent first, as the field has them since Liu et al. 2019 (OLTR).
SHOT_GROUPS = (ShotGroup("many", 101, None), ShotGroup("medium", 20, 100), ShotGroup("few", 0, 19))


def shot_group(count: int) -> ShotName:
    """The name of the shot group of a class with `count` training images, 0 or more."""
    return next(group.name for group in SHOT_GROUPS if count >= group.fewest)


def shot_groups(counts: Sequence[int]) -> list[ShotName]:
    """The same for every class, from the training images of each, [C]."""
    return [shot_group(count) for count in counts]


@dataclass(frozen=True)
class Figure:
    """A figure by its names.

    Attributes:
        short: what heads a column of a table.
        long: what it is, in words.
        fraction: whether it lies in 0..1 and is shown in percent.
        higher_is_better: whether more of it is better; None where neither is.
    """

    short: str
    long: str
    fraction: bool = True
    higher_is_better: bool | None = True


def _of_group(group: ShotGroup) -> Figure:
    return Figure(group.name, f"accuracy on classes with {group.words} training images")


#: The figures of an evaluation by their names in ``result.json``, in the order in which they are shown.
FIGURES: dict[FigureName, Figure] = {
    "top1": Figure("top-1", "top-1 accuracy"),
    "top5": Figure("top-5", "top-5 accuracy"),
    **{group.name: _of_group(group) for group in SHOT_GROUPS},
    "balanced_accuracy": Figure("balanced", "balanced accuracy"),
    "macro_f1": Figure("macro F1", "macro F1"),
    "ece": Figure("ECE", "expected calibration error", higher_is_better=False),
}

#: The figures of single classes that ``diagnostics`` holds, by their names there.
DIAGNOSTICS: dict[DiagnosticName, Figure] = {
    "train_accuracy": Figure("accuracy on training images", "accuracy on training images"),
    "test_accuracy": Figure("accuracy on test images", "accuracy on test images"),
    "classifier_norm": Figure(
        "norm", "norm of the classifier's row of each class", fraction=False, higher_is_better=None
    ),
    "feature_deviation": Figure(
        "deviation", "feature deviation between training and test images", fraction=False, higher_is_better=False
    ),
}

#: What the console's table at a run's end shows, in 80 columns.
CONSOLE: tuple[FigureName, ...] = ("top1", "many", "medium", "few", "balanced_accuracy", "ece")
#: What the console's line at a stage's end shows.
STAGE_LINE: tuple[FigureName, ...] = ("top1", "many", "medium", "few")
#: What ``ltcore compare`` shows by default; differences in the first are tested.
COMPARED: tuple[FigureName, ...] = ("top1", "balanced_accuracy", "many", "medium", "few", "ece")
#: What the card of an exported model shows.
CARD: tuple[FigureName, ...] = ("top1", "top5", "many", "medium", "few", "balanced_accuracy", "ece")
#: What a recipe's `published` may hold beside top-1 accuracy, which is its `value`.
PUBLISHED: tuple[FigureName, ...] = ("top5", "many", "medium", "few")
