"""The methods `mixup` and `remix`."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor

from ltcore import Batch, Context, Method, Options, hookimpl
from ltcore_mixup.functional import beta_quantile, beta_table, draw_one_label, mix_images, remix_share


class MixupOptions(Options):
    """Options of mixup."""

    alpha: float = Field(default=1.0, ge=0.0)
    """Both parameters of the Beta distribution of the share: 1 is uniform, less mixes less. 0 mixes nothing."""


class RemixOptions(MixupOptions):
    """Options of remix."""

    kappa: float = Field(default=3.0, gt=1.0)
    """How many times more images a class must have for its labels to give way."""
    tau: float = Field(default=0.5, ge=0.0, le=1.0)
    """They give way where the frequent class has less than this share of the image. 0 is mixup."""


OptionsT = TypeVar("OptionsT", bound=MixupOptions)


class _Blend(Method[OptionsT]):
    """Images blended in pairs; a subclass says in what shares their labels are. See `mix_images`."""

    interface = "1.0"
    breaks = frozenset({"hard_labels"})
    table: Tensor

    def __init__(self, options: OptionsT | None = None) -> None:
        """Keep the options, and the table of the Beta distribution in a buffer, which no checkpoint needs."""
        super().__init__(options)
        alpha = self.options.alpha
        self.register_buffer("table", beta_table(alpha) if alpha > 0 else torch.empty(0), persistent=False)

    def label_share(self, share: Tensor, targets: Tensor, partner_targets: Tensor, context: Context) -> Tensor:
        """The share of `targets` in the labels of a blend, [N], given the images' share, 0-d."""
        raise NotImplementedError

    @hookimpl
    def mix_inputs(self, batch: Batch, context: Context) -> Batch:
        """The batch blended with a permutation of itself, with one share for all rows; itself where alpha is 0."""
        if self.options.alpha == 0:
            return batch
        rows, device, generator = len(batch.targets), context.device, context.generator
        uniform = torch.rand(1, generator=generator, device=device, dtype=torch.float64)
        share = beta_quantile(uniform, self.table, self.options.alpha)[0].float()
        order = torch.randperm(rows, generator=generator, device=device)
        targets = batch.targets
        if batch.partner_targets is not None and batch.target_weight is not None:
            chance = torch.rand(rows, generator=generator, device=device)
            targets = draw_one_label(targets, batch.partner_targets, batch.target_weight, chance)
        return replace(
            batch,
            images=mix_images(batch.images, order, share),
            targets=targets,
            partner_targets=targets[order],
            target_weight=self.label_share(share, targets, targets[order], context),
        )


class Mixup(_Blend[MixupOptions]):
    """Mixup (Zhang et al. 2018): images blended in pairs, and their labels likewise. See `mix_images`."""

    def label_share(self, share: Tensor, targets: Tensor, partner_targets: Tensor, context: Context) -> Tensor:
        """The share of `targets` in the labels of a blend, [N]: that of the images."""
        return share.expand(len(targets))


class Remix(_Blend[RemixOptions]):
    """Remix (Chou et al. 2020): mixup whose labels lean to the rarer class. See `remix_share`."""

    def label_share(self, share: Tensor, targets: Tensor, partner_targets: Tensor, context: Context) -> Tensor:
        """The share of `targets` in the labels of a blend, [N]."""
        counts = context.class_counts
        return remix_share(share, counts[targets], counts[partner_targets], self.options.kappa, self.options.tau)
