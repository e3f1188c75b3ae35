"""The records that hooks pass along: a training batch, and feature rows at a tap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ltcore.errors import PluginError


@dataclass(frozen=True)
class Batch:
    """A training batch, before the backbone.

    Attributes:
        images: [N, C, H, W], normalised.
        targets: [N] int64.
        source_index: [N] int64; which image of the training split each row is.
        source_only: [N] bool; rows that a sampler brought as sources of features and that are not trained on.
            None where there are none.
        partner_targets: [N] int64; the second label of a mixed row. None where nothing is mixed.
        target_weight: [N] float; the share of `targets`, the partner has the rest. None where nothing is mixed.
        layout: what the sampler says of its batches (`ltcore.EpochBatches`), for the method whose sampler it is.
    """

    images: Tensor
    targets: Tensor
    source_index: Tensor
    source_only: Tensor | None = None
    partner_targets: Tensor | None = None
    target_weight: Tensor | None = None
    layout: object = None


@dataclass(frozen=True)
class Features:
    """Feature rows at a tap; a method returns a changed copy and never writes into the tensors it was given.

    Attributes:
        features: [N, D, H, W] at a spatial tap, [N, D] at ``pooled``.
        targets: [N] int64.
        source_index: [N] int64; the image of the training split that a row comes from. For a synthetic row, the
            image whose label it carries.
        synthetic: [N] bool; rows made by a method. A later method leaves them alone unless it is asked not to.
        source_only: [N] bool; rows that must be dropped or replaced before the classifier. None where there are none.
        partner_targets: as in `Batch`.
        target_weight: as in `Batch`.
        images: [N0, C, H, W]; the images of the batch, in the sampler's order; None where features are cached.
        loss_weight: [N] float, at least 0; what a row counts for in the classification loss, which is then the weighted
            mean. None where all rows count the same.
        expert: [N] int64; which expert of the network a row is of. None where it has none, or has not split yet; from
            its split on, the rows are those of expert 0 for all images first, then those of expert 1, and so on, and
            behind them what methods have appended.
        layout: as in `Batch`.
        kept: what methods hand on to their own later hooks of the step, by their names in the recipe; see `keeping`.
    """

    features: Tensor
    targets: Tensor
    source_index: Tensor
    synthetic: Tensor
    source_only: Tensor | None = None
    partner_targets: Tensor | None = None
    target_weight: Tensor | None = None
    images: Tensor | None = None
    loss_weight: Tensor | None = None
    expert: Tensor | None = None
    layout: object = None
    kept: Mapping[str, Any] = field(default_factory=dict)

    def keeping(self, name: str, value: Any) -> Features:
        """A copy in which a method, by its name in the recipe (`ltcore.Context.name`), hands `value` on to itself.

        It is there in the method's later hooks of the same step, such as `auxiliary_losses`, and gone after it.
        """
        return replace(self, kept={**self.kept, name: value})

    @classmethod
    def of(cls, batch: Batch, features: Tensor, images: Tensor | None) -> Features:
        """The record of a batch whose rows reached a tap as `features`."""
        return cls(
            features=features,
            targets=batch.targets,
            source_index=batch.source_index,
            synthetic=torch.zeros(len(batch.targets), dtype=torch.bool, device=features.device),
            source_only=batch.source_only,
            partner_targets=batch.partner_targets,
            target_weight=batch.target_weight,
            images=images,
            layout=batch.layout,
        )

    def split(self, features: Tensor, experts: int) -> Features:
        """The record behind the place where the network splits: each row once for each expert, expert by expert.

        Args:
            features: [experts * N, ...].
            experts: how many.
        """

        def repeated(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.repeat(experts)

        return replace(
            self,
            features=features,
            targets=self.targets.repeat(experts),
            source_index=self.source_index.repeat(experts),
            synthetic=self.synthetic.repeat(experts),
            source_only=repeated(self.source_only),
            partner_targets=repeated(self.partner_targets),
            target_weight=repeated(self.target_weight),
            loss_weight=repeated(self.loss_weight),
            expert=torch.arange(experts, device=features.device).repeat_interleave(len(self.targets)),
        )

    def append(
        self, features: Tensor, targets: Tensor, source_index: Tensor, expert: Tensor | None = None
    ) -> Features:
        """A copy with synthetic rows added at the end; a mixed batch gives them one label only, and a loss weight 1.

        Args:
            features: [M, ...], as at the tap.
            targets: [M] int64.
            source_index: [M] int64.
            expert: [M] int64, which expert each row is of; wanted where the network has split, and only there.

        Raises:
            PluginError: `expert` is missing, or given where there are no experts.
        """
        if (expert is None) != (self.expert is None):
            raise PluginError(
                "appends rows without saying which expert each is of, and the network has experts: "
                "features.append(..., expert=features.expert[rows]); tell its author"
                if expert is None
                else "appends rows of experts where the network has not split into any; tell its author"
            )
        mixed = self.partner_targets is not None and self.target_weight is not None
        return replace(
            self,
            features=torch.cat([self.features, features]),
            targets=torch.cat([self.targets, targets]),
            source_index=torch.cat([self.source_index, source_index]),
            synthetic=torch.cat([self.synthetic, torch.ones_like(targets, dtype=torch.bool)]),
            source_only=None
            if self.source_only is None
            else torch.cat([self.source_only, torch.zeros_like(targets, dtype=torch.bool)]),
            partner_targets=torch.cat([self.partner_targets, targets]) if mixed else None,  # type: ignore[list-item]
            target_weight=torch.cat([self.target_weight, torch.ones_like(targets, dtype=self.target_weight.dtype)])  # type: ignore[list-item,union-attr]
            if mixed
            else None,
            loss_weight=None
            if self.loss_weight is None
            else torch.cat([self.loss_weight, torch.ones_like(targets, dtype=self.loss_weight.dtype)]),
            expert=None if self.expert is None else torch.cat([self.expert, expert]),  # type: ignore[list-item]
        )
