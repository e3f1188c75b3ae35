"""The method `cmo`."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ltcore import Batch, ClassPools, Context, Method, Options, RecipeError, Stage, draw_classes, hookimpl
from ltcore_cmo.functional import box, donor_distribution, draw_one_label, paste, symmetric_beta


class CMOOptions(Options):
    """Options of CMO; the defaults are those of the authors' code, the same for every data set."""

    probability: float = Field(default=0.5, ge=0.0, le=1.0)
    """How many of the batches are pasted onto. 0 is training without CMO, bit for bit."""
    power: float = Field(default=1.0, ge=0.0)
    """r: images are drawn for pasting with weight ``n ** -r``, n the training images of their class. 0 is CutMix with
    images from the whole training split."""
    per: Literal["image", "class"] = "image"
    """Whose weight ``n ** -r`` is: each image's (the authors' code; at r = 1 every class is pasted equally often) or
    each class's (the paper's text; at r = 1 the rarest class is pasted most often)."""
    beta: float = Field(default=1.0, gt=0.0)
    """Both parameters of the Beta distribution of the area that stays; 1 is uniform."""
    start_epoch: int = Field(default=4, ge=0)
    """First epoch of the stage, counted from 0, with pasted images."""
    plain_at_end: int = Field(default=3, ge=0)
    """How many epochs at the stage's end are without."""


class CMO(Method[CMOOptions]):
    """Context-rich minority oversampling (Park et al. 2022): patches of rare images on images as they come."""

    interface = "1.1"
    breaks = frozenset({"hard_labels"})
    checked_with: ClassVar = {"start_epoch": 1, "plain_at_end": 0}

    def check_stage(self, stage: Stage) -> None:
        """Refuse a stage in which no epoch is left for pasting."""
        if stage.epochs is not None:
            self._refuse_no_epoch(stage.epochs)

    def _refuse_no_epoch(self, epochs: int) -> None:
        start, end = self.options.start_epoch, self.options.plain_at_end
        if start + end >= epochs:
            raise RecipeError(
                f"with start_epoch {start} and plain_at_end {end} no image is ever pasted in {epochs} epochs, counted "
                "from 0; lower them"
            )

    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        """Refuse a stage given in iterations in which no epoch is left, at its beginning."""
        self._refuse_no_epoch(context.epochs)

    @hookimpl
    def extra_rows(self, indices: list[Tensor], generator: torch.Generator, context: Context) -> list[Tensor] | None:
        """A donor for each row of the batches that are pasted onto, none for the others."""
        options = self.options
        if not options.start_epoch <= context.epoch < context.epochs - options.plain_at_end:
            return None
        pools = ClassPools(context.training_targets, context.num_classes)
        distribution = donor_distribution(pools.counts, options.power, options.per)

        def donors(batch: Tensor) -> Tensor:
            pasted = bool(torch.rand((), generator=generator) < options.probability)
            classes = draw_classes(distribution, (len(batch) * pasted,), generator)
            return pools.draw_images(classes, generator)

        return [donors(batch) for batch in indices]

    @hookimpl
    def mix_inputs(self, batch: Batch, context: Context) -> Batch:
        """The batch with a box of each row's donor pasted into it; itself where it has no donors."""
        donors = batch.extra
        if donors is None or not len(donors.targets):
            return replace(batch, extra=None)
        rows, device, generator = len(batch.targets), context.device, context.generator
        uniform = torch.rand(5, generator=generator, device=device, dtype=torch.float64)
        share = symmetric_beta(uniform[:3], self.options.beta)
        inside, left = box(share, uniform[3:], *batch.images.shape[2:])
        targets = batch.targets
        if batch.partner_targets is not None and batch.target_weight is not None:
            chance = torch.rand(rows, generator=generator, device=device)
            targets = draw_one_label(targets, batch.partner_targets, batch.target_weight, chance)
        return replace(
            batch,
            images=paste(batch.images, donors.images, inside),
            targets=targets,
            partner_targets=donors.targets,
            target_weight=left.expand(rows),
            extra=None,
        )
