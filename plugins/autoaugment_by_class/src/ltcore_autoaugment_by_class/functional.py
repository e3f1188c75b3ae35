"""The levels of the classes, and the test that moves them (Ahn, Ko, Yun 2023, section 3.2 and the authors' code)."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_test(levels: Tensor, tries: int) -> list[Tensor]:
    """Which classes are tested at which level: at each level up to its own, the more often the higher.

    Ahn et al. 2023, algorithm 2: at level l a class of level L >= l shows ``tries * (l + 1)`` images.

    Args:
        levels: [C] int64, at least 0.
        tries: T, images at level 0.

    Returns:
        For each level from 0 to the highest of any class, the class of each image that is shown, [M] int64 in the
        order of the classes.
    """
    classes = torch.arange(len(levels))
    return [classes[levels >= level].repeat_interleave(tries * (level + 1)) for level in range(int(levels.max()) + 1)]


def passed(correct: Tensor, shown: Tensor, levels: Tensor, threshold: float) -> Tensor:
    """Which classes have passed: at each level up to their own, more than a share of their images was recognised.

    Args:
        correct: [C, K], images of each class that were recognised at each level; K is above the highest level.
        shown: [C, K], how many there were, above 0 at every level up to the class's own.
        levels: [C] int64.
        threshold: gamma, in [0, 1); a share of exactly that much does not pass.

    Returns:
        [C] bool.
    """
    asked = torch.arange(shown.shape[1], device=levels.device) <= levels[:, None]
    above = correct.double() > threshold * shown.double()
    return (above | ~asked).all(1)


def next_levels(levels: Tensor, passes: Tensor, highest: int) -> Tensor:
    """The levels after a test: one up for a class that has passed, one down for one that has not.

    Args:
        levels: [C] int64.
        passes: [C] bool.
        highest: the highest level; 0 is the lowest.

    Returns:
        [C] int64.
    """
    return (levels + torch.where(passes, 1, -1)).clamp(0, highest)
