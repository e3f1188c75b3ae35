"""The records that hooks pass along: a training batch, and feature rows at a tap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A training batch, before the backbone.

    Attributes:
        images: [N, C, H, W], normalised.
        targets: [N] int64.
        source_index: [N] int64; which image of the training split each row is.
        partner_targets: [N] int64; the second label of a mixed row. None where nothing is mixed.
        target_weight: [N] float; the share of `targets`, the partner has the rest. None where nothing is mixed.
        layout: what the sampler says of its batches (`ltcore.EpochBatches`), for the method whose sampler it is.
        extra: the rows that the method which reads this has asked for in ``extra_rows``; None where it did not, or has
            taken them out of the batch.
        extras: those of all methods, by their names in the recipe; core's to keep.
    """

    images: Tensor
    targets: Tensor
    source_index: Tensor
    partner_targets: Tensor | None = None
    target_weight: Tensor | None = None
    layout: object = None
    extra: Batch | None = None
    extras: Mapping[str, Batch] = field(default_factory=dict)

    @property
    def rows(self) -> Tensor:
        """What the network starts with: the images, and behind them those of every method's extra rows."""
        if not self.extras:
            return self.images
        return torch.cat([self.images, *(extra.images for extra in self.extras.values())])


@dataclass(frozen=True)
class Features:
    """Feature rows at a tap; a method returns a changed copy and never writes into the tensors it was given.

    Attributes:
        features: [N, D, H, W] at a spatial tap, [N, D] at ``pooled``.
        targets: [N] int64.
        source_index: [N] int64; the image of the training split that a row comes from. For a synthetic row, the
            image whose label it carries.
        synthetic: [N] bool; rows made by a method. A later method leaves them alone unless it is asked not to.
        partner_targets: as in `Batch`.
        target_weight: as in `Batch`.
        images: [N0, C, H, W]; the images of the batch, in the sampler's order; None where features are cached.
        layout: as in `Batch`.
        extra: the rows that the method which reads this has asked for in ``extra_rows``, as they are at this tap; they
            never reach the classifier. None where it did not, or has taken them out.
        extras: those of all methods, by their names in the recipe; core's to keep.
        losses: terms of the loss that methods made on the way, see `with_losses`.
        kept: what methods hand on to their own later hooks of the step, by their names in the recipe; see `keeping`.
    """

    features: Tensor
    targets: Tensor
    source_index: Tensor
    synthetic: Tensor
    partner_targets: Tensor | None = None
    target_weight: Tensor | None = None
    images: Tensor | None = None
    layout: object = None
    extra: Features | None = None
    extras: Mapping[str, Features] = field(default_factory=dict)
    losses: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)

    def keeping(self, name: str, value: Any) -> Features:
        """A copy in which a method, by its name in the recipe (`ltcore.Context.name`), hands `value` on to itself.

        It is there in the method's later hooks of the same step, such as `auxiliary_losses`, and gone after it.
        """
        return replace(self, kept={**self.kept, name: value})

    def with_losses(self, name: str, **terms: Tensor) -> Features:
        """A copy that carries terms of a method's loss, 0-d, which only this tap's features give.

        They are declared in the method's ``auxiliary`` and weighed as those that `auxiliary_losses` returns; together
        the two give exactly what is declared.

        Args:
            name: the method's name in the recipe (`ltcore.Context.name`).
            terms: the terms by their declared names.
        """
        return replace(self, losses={**self.losses, name: {**self.losses.get(name, {}), **terms}})

    @classmethod
    def of(cls, batch: Batch, features: Tensor, images: Tensor | None) -> Features:
        """The record of a batch whose rows reached a tap as `features`."""
        return cls(
            features=features,
            targets=batch.targets,
            source_index=batch.source_index,
            synthetic=torch.zeros(len(batch.targets), dtype=torch.bool, device=features.device),
            partner_targets=batch.partner_targets,
            target_weight=batch.target_weight,
            images=images,
            layout=batch.layout,
            extras={
                name: cls.of(extra, features[:0], None if images is None else extra.images)
                for name, extra in batch.extras.items()
            },
        ).with_rows(features)

    @property
    def rows(self) -> Tensor:
        """What the network goes on with: the features, and behind them those of every method's extra rows."""
        if not self.extras:
            return self.features
        return torch.cat([self.features, *(extra.features for extra in self.extras.values())])

    def with_rows(self, rows: Tensor) -> Features:
        """A copy whose features, and those of the extra rows, are `rows`, laid out as in the property `rows`."""
        if not self.extras:
            return replace(self, features=rows)
        sizes = [len(self.targets), *(len(extra.targets) for extra in self.extras.values())]
        own, *blocks = torch.split(rows, sizes)
        names = zip(self.extras, blocks, strict=True)
        return replace(
            self, features=own, extras={name: replace(self.extras[name], features=block) for name, block in names}
        )

    def append(self, features: Tensor, targets: Tensor, source_index: Tensor) -> Features:
        """A copy with synthetic rows added at the end; a mixed batch gives them one label only."""
        mixed = self.partner_targets is not None and self.target_weight is not None
        if self.features.dim() == 4 and self.features.is_contiguous(memory_format=torch.channels_last):
            features = features.contiguous(memory_format=torch.channels_last)  # what is joined has the layout of both
        return replace(
            self,
            features=torch.cat([self.features, features]),
            targets=torch.cat([self.targets, targets]),
            source_index=torch.cat([self.source_index, source_index]),
            synthetic=torch.cat([self.synthetic, torch.ones_like(targets, dtype=torch.bool)]),
            partner_targets=torch.cat([self.partner_targets, targets]) if mixed else None,  # type: ignore[list-item]
            target_weight=torch.cat([self.target_weight, torch.ones_like(targets, dtype=self.target_weight.dtype)])  # type: ignore[list-item,union-attr]
            if mixed
            else None,
        )
