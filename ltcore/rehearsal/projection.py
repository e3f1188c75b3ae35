"""From the few steps that a rehearsal trains to the time of a whole stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltcore.data.loader import Loader
from ltcore.training.features import FeatureCache


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


class TimedBatches:
    """A stage's batches, and the time between the end of the warm-up and that of the last step."""

    def __init__(
        self, source: Loader | FeatureCache, warm_up: int, device: torch.device, clock: Callable[[], float]
    ) -> None:
        self._device = device
        self._source, self._warm_up, self._clock = source, warm_up, clock
        self.generator_device = source.generator_device
        self.began = self.warm = self.ended = 0.0

    def train_batches(self, indices: Sequence[Tensor], generators: Iterable[torch.Generator]) -> Iterator[Tensor]:
        """The source's batches; asked for the next one, the step is done."""
        self.began = self.warm = self._now()
        for step, images in enumerate(self._source.train_batches(indices, generators), start=1):
            yield images
            if step == self._warm_up:
                self.warm = self._now()
            if step == len(indices):
                self.ended = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()
