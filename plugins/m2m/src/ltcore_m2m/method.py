"""The method `m2m`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ltcore import Batch, Context, Method, Options, evaluating, hookimpl
from ltcore_m2m.functional import Pairs, draw_pairs, replacement_chances, seed_chances, start, translate


class M2mOptions(Options):
    """Options of M2m; the defaults are those of the authors' published run on CIFAR-10-LT at imbalance 100."""

    start_epoch: int = Field(default=160, ge=0)
    """First epoch of the stage, counted from 0, in which images are translated: that of the first drop of the rate."""
    guide: str | None = None
    """The earlier stage whose network translates (g); by default the stage before."""
    beta: float = Field(default=0.999, ge=0.0, lt=1.0)
    """How many images more than the target's a seed's class needs: about ``1 / (1 - beta)``."""
    strength: float = Field(default=0.5, ge=0.0)
    """lambda: how much the logit of the seed's own class, in the network that trains, is pressed down."""
    confidence: float = Field(default=0.9, ge=0.0, le=1.0)
    """gamma: the probability that the guide must give the target's class for a translation to be used."""
    step: float = Field(default=0.1, gt=0.0)
    """Length of a step of the translation, in pixels between black 0 and white 1."""
    steps: int = Field(default=10, ge=1)
    """Steps of a translation."""
    noise: float = Field(default=0.5, ge=0.0)
    """The longest noise that a channel of all translated images together begins with."""


class M2m(Method[M2mOptions]):
    """Major-to-minor translation (Kim et al. 2020): rows of rare classes are replaced by translated frequent ones.

    Attributes:
        counts: [3] rows of the epoch so far: all, those for which a translation was made, those that were replaced.
    """

    interface = "1.1"
    checked_with: ClassVar = {"start_epoch": 1, "beta": 0.5, "confidence": 0.2, "steps": 2}
    requires = frozenset({"earlier_stage", "hard_labels"})
    counts: Tensor

    def __init__(self, options: M2mOptions | None = None) -> None:
        """Keep the options."""
        super().__init__(options)
        self.register_buffer("counts", torch.zeros(3))
        # Of the epoch, and found again in `extra_rows` by a run that goes on.
        self._pairs: list[Pairs] = []
        self._range: tuple[Tensor, Tensor] | None = None

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        """See that the guide's stage is there.

        Raises:
            RunError: it is not.
        """
        context.frozen_model(self.options.guide)

    @hookimpl
    def on_epoch_start(self) -> None:
        """Count anew."""
        self.counts.zero_()

    def logged(self) -> Mapping[str, Tensor]:
        """Shares of the epoch's rows: ``translated`` were tried, ``replaced`` were used."""
        rows, translated, replaced = self.counts
        return {"translated": translated / rows, "replaced": replaced / rows}

    @hookimpl
    def extra_rows(self, indices: list[Tensor], generator: torch.Generator, context: Context) -> None:
        """No rows of its own: here the batches' labels are known on the CPU, and so which rows are paired."""
        self._pairs = []
        if context.epoch < self.options.start_epoch:
            return
        counts = context.class_counts.cpu()
        replaced, chances = replacement_chances(counts), seed_chances(counts, self.options.beta)
        targets = context.training_targets
        self._pairs = [draw_pairs(targets[batch], replaced, chances, generator) for batch in indices]
        # What black and white are once they are normalised: the translation stays between them.
        one = torch.zeros(1, dtype=torch.int64)
        black, white = (context.images("train", one, transform=fill)[:, :, :1, :1] for fill in (_black, _white))
        self._range = black, white - black

    @hookimpl
    def mix_inputs(self, batch: Batch, context: Context) -> Batch:
        """The batch, with a translation in the place of each paired row that the guide is sure enough of."""
        if not self._pairs:
            return batch
        pairs, device = self._pairs[context.step], batch.images.device
        self.counts[0] += len(batch.targets)
        if not len(pairs.rows):
            return batch
        rows, seeds = (places.to(device, non_blocking=True) for places in (pairs.rows, pairs.seeds))
        made, accepted = self._translated(batch, rows, seeds, context)
        self.counts[1] += len(rows)
        self.counts[2] += accepted.sum()
        used = torch.where(accepted[:, None, None, None], made, batch.images[rows])
        return replace(batch, images=batch.images.index_copy(0, rows, used))

    def _translated(self, batch: Batch, rows: Tensor, seeds: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Translations [M, C, H, W] of the seeds to the rows' classes, normalised, and whether each is used [M]."""
        options, model, guide = self.options, context.model, context.frozen_model(self.options.guide)

        assert self._range is not None  # known wherever there are pairs
        black, span = self._range

        def normalised(pixels: Tensor) -> Tensor:
            return black + span * pixels

        pixels, targets = (batch.images[seeds] - black) / span, batch.targets[rows]
        noise = torch.rand(pixels.shape, generator=context.generator, device=pixels.device)
        with evaluating(model):
            made = translate(
                start(pixels, noise, options.noise),
                targets,
                batch.targets[seeds],
                lambda x: guide(normalised(x)),
                lambda x: model(normalised(x)),
                options.strength,
                options.step,
                options.steps,
            )
            made = normalised(made)
            sure = guide(made).softmax(1).gather(1, targets[:, None])[:, 0]
        return made, sure >= options.confidence


def _black(image: Tensor, target: int, generator: torch.Generator) -> Tensor:
    return torch.zeros_like(image)


def _white(image: Tensor, target: int, generator: torch.Generator) -> Tensor:
    return torch.full_like(image, 255)
