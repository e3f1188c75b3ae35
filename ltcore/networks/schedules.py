"""The learning rate as a pure function of the position in a stage.

Nothing is stored between steps, so a resumed run has the rates of one that was never stopped.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltcore.contract.recipe import Schedule


def learning_rate(schedule: Schedule, base_lr: float, epoch: int, total: int, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one training step.

    During the first `schedule.warmup_epochs` = W epochs the rate is ``base_lr * (epoch + 1) / W``, constant within an
    epoch. From epoch W on it is:

    - ``constant``: ``base_lr``.
    - ``step``: ``base_lr * gamma ** (epoch // every)``.
    - ``multistep``: ``base_lr * gamma ** k`` where k milestones are at or before `epoch`. The milestone 160 means
      "after epoch 160": 160 whole epochs have the old rate, epoch index 160 is the first with the new one.
    - ``cosine``: ``min_lr + (base_lr - min_lr) * (1 + cos(pi * t / T)) / 2`` with t the steps since the warm-up and T
      all steps after it; the step after the last one would have ``min_lr``.

    Epochs count from the start of the stage in every rule: the warm-up shifts no milestone.

    Args:
        schedule: a schedule of the recipe.
        base_lr: the optimiser's learning rate in the recipe.
        epoch: epoch of the stage, from 0.
        total: steps of the stage, of which the last epoch may have fewer than the others.
        step: step in the epoch, from 0.
        steps_per_epoch: steps in an epoch, at least 1.

    Raises:
        ValueError: the schedule's name is none of the four.
    """
    warmup = schedule.warmup_epochs
    if epoch < warmup:
        return base_lr * (epoch + 1) / warmup
    if schedule.name == "constant":
        return base_lr
    if schedule.name == "step":
        return base_lr * schedule.gamma ** (epoch // schedule.every)
    if schedule.name == "multistep":
        return base_lr * schedule.gamma ** sum(milestone <= epoch for milestone in schedule.milestones)
    if schedule.name == "cosine":
        done = (epoch - warmup) * steps_per_epoch + step
        left = total - warmup * steps_per_epoch
        return schedule.min_lr + (base_lr - schedule.min_lr) * (1 + math.cos(math.pi * done / left)) / 2
    raise ValueError(f"unknown schedule '{schedule.name}'")


def never_comes(schedule: Schedule, epochs: int) -> list[str]:
    """What a schedule asks for that lies behind the end of its stage, a sentence each.

    Args:
        schedule: a schedule of the recipe.
        epochs: epochs of the stage, the last one perhaps not whole.
    """
    found = []
    if schedule.warmup_epochs > epochs:
        found.append(
            f"warmup_epochs {schedule.warmup_epochs} does not end in {epochs} epochs, so the rate stays below lr"
        )
    if schedule.name == "multistep":
        late = [str(milestone) for milestone in schedule.milestones if milestone >= epochs]
        if late:
            come = "comes" if len(late) == 1 else "come"
            found.append(f"milestones: {', '.join(late)} never {come} in {epochs} epochs, counted from 0")
    if schedule.name == "step" and schedule.every >= epochs:
        found.append(f"every {schedule.every} never comes in {epochs} epochs, so the rate does not change")
    return [f"schedule {schedule.name}: {text}; set it to suit the stage's length" for text in found]
