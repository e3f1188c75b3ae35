"""From the few steps that a rehearsal trains to the time of a whole stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measured:
    """One epoch of which a few steps were trained.

    Attributes:
        epoch: which, from 0.
        rows: images in a step.
        step: seconds of a step.
        outside: seconds of the epoch's hooks, drawing and diagnostics, passes over the data as they would take.
        by_decoding: whether decoding the images takes longer than training on them.
    """

    epoch: int
    rows: float
    step: float
    outside: float
    by_decoding: bool

    @property
    def figures(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "epoch": self.epoch,
            "seconds_per_step": self.step,
            "images_per_second": self.rows / max(self.step, 1e-9),
            "seconds_outside_steps": self.outside,
            "bound_by_decoding": self.by_decoding,
        }


def projected_seconds(
    steps: int, per_epoch: int, early: Measured, late: Measured, change: float, around: float = 0.0
) -> float:
    """Seconds that a stage would take.

    Args:
        steps: of the whole stage.
        per_epoch: steps of an epoch.
        early: an epoch before `change`.
        late: an epoch from `change` on.
        change: how many epochs are like `early`.
        around: seconds before the first epoch and after the last.
    """
    epochs = steps / per_epoch
    before = min(change, epochs)
    spent = before * (early.outside + per_epoch * early.step)
    return around + spent + (epochs - before) * (late.outside + per_epoch * late.step)
