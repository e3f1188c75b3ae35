"""Moving averages of lists of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ema_share(steps: Tensor, decay: float, warmup: bool) -> Tensor:
    """What the newest weights count for in an exponential moving average.

    Args:
        steps: 0-d, averaged steps before this one.
        decay: share of the old average, in [0, 1).
        warmup: whether the share grows as ``(1 + steps) / (10 + steps)`` up to `decay`, so that the first, untrained
            weights are soon forgotten.

    Returns:
        0-d float32, one minus the share of the old average; 1 for the first step of all.
    """
    steps = steps.float()
    kept = torch.full_like(steps, decay)
    if warmup:
        kept = torch.minimum(kept, (1 + steps) / (10 + steps))
    return torch.where(steps == 0, torch.ones_like(kept), 1 - kept)


def swa_share(averaged: Tensor) -> Tensor:
    """What the newest weights count for in an equal average (Izmailov et al. 2018, algorithm 1).

    Args:
        averaged: 0-d, how many weights were averaged before these.

    Returns:
        0-d float32, ``1 / (averaged + 1)``.
    """
    return 1 / (averaged.float() + 1)


def average_into(average: Tensor, values: Sequence[Tensor], share: Tensor) -> None:
    """Move an average towards new values, in place.

    Args:
        average: [P] float32, which holds at least all elements of `values`, one after the other.
        values: tensors of any shape.
        share: 0-d, what the new values count for.
    """
    start = 0
    for value in values:
        part = average[start : start + value.numel()]
        part.lerp_(value.detach().reshape(-1).to(part.dtype), share)
        start += value.numel()


def put_back(average: Tensor, values: Sequence[Tensor]) -> None:
    """Write an average into the tensors that it is of, in place.

    Args:
        average: as in `average_into`.
        values: tensors of any shape.
    """
    start = 0
    for value in values:
        value.copy_(average[start : start + value.numel()].view(value.shape))
        start += value.numel()
