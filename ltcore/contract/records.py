"""The records that hooks pass along: a training batch, and feature rows at a tap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        partner_targets: [N] int64; the second label of a mixed row. None where nothing is mixed.
        target_weight: [N] float; the share of `targets`, the partner has the rest. None where nothing is mixed.
        layout: what the sampler says of its batches (`ltcore.EpochBatches`), for the method whose sampler it is.
        extra: the rows that the method which reads this has asked for in ``extra_rows``. None if it asked for none, or
            has taken them out of the batch.
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


def count_rows(record: Batch | Features) -> int:
    """How many rows go through the network: those of the record, and every method's extra rows."""
    return len(record.targets) + sum(len(extra.targets) for extra in record.extras.values())


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
        expert: [N] int64; which expert of the network a row is of. None where it has none, or has not split yet. From
            its split on, the rows are those of expert 0 for all images first, then those of expert 1, and so on. After
            them come rows that methods have appended.
        expert_rows: where the rows stand that came through each expert of the network; empty where there are none.
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
    expert: Tensor | None = None
    expert_rows: tuple[slice, ...] = ()
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

    def split(self, rows: Tensor, experts: int) -> Features:
        """The record behind the place where the network splits: each row once for each expert, expert by expert.

        Args:
            rows: [experts * R, ...], for each expert R rows as in the property `rows`.
            experts: how many.
        """
        if not self.extras:
            return self._repeated(rows, experts)
        sizes = [len(self.targets), *(len(extra.targets) for extra in self.extras.values())]
        blocks = torch.split(rows.reshape(experts, -1, *rows.shape[1:]), sizes, 1)
        own, *others = (block.flatten(0, 1) for block in blocks)
        extras = {
            name: extra._repeated(block, experts)
            for (name, extra), block in zip(self.extras.items(), others, strict=True)
        }
        return replace(self._repeated(own, experts), extras=extras)

    def _repeated(self, features: Tensor, experts: int) -> Features:
        """Every field of a row once for each expert, beside features that are."""
        partners, share = self.partner_targets, self.target_weight
        return replace(
            self,
            features=features,
            targets=self.targets.repeat(experts),
            source_index=self.source_index.repeat(experts),
            synthetic=self.synthetic.repeat(experts),
            partner_targets=None if partners is None else partners.repeat(experts),
            target_weight=None if share is None else share.repeat(experts),
            expert=torch.arange(experts, device=features.device).repeat_interleave(len(self.targets)),
            expert_rows=tuple(slice(k * len(self.targets), (k + 1) * len(self.targets)) for k in range(experts)),
        )

    def each_expert(self, change: Callable[[Features, int], Features]) -> Features:
        """Change each expert's rows as if the network was that expert alone; the record itself where it has none.

        Of what methods have appended behind the split, no expert sees anything, and it stays as it is. Terms of losses
        are averaged over the experts; what is kept for later hooks is kept by the caller.

        Args:
            change: given an expert's record, its own extra rows with it, and the expert's number. It may change the
                rows and append others, as many for every expert.
        """
        if not self.expert_rows:
            return change(self, 0)
        found = [change(self._of_expert(number), number) for number in range(len(self.expert_rows))]
        rows, end = self.expert_rows[0].stop, self.expert_rows[-1].stop

        def joined(name: str) -> Any:
            parts = [getattr(one, name) for one in found]
            if parts[0] is None:
                return None
            own, appended = [part[:rows] for part in parts], [part[rows:] for part in parts]
            return torch.cat([*own, getattr(self, name)[end:], *appended])

        names = ("features", "targets", "source_index", "synthetic", "partner_targets", "target_weight")
        made = [torch.full_like(one.targets[rows:], number) for number, one in enumerate(found)]
        losses = {
            name: {term: torch.stack([one.losses[name][term] for one in found]).mean() for term in terms}
            for name, terms in found[0].losses.items()
        }
        return replace(
            self,
            **{name: joined(name) for name in names},
            expert=None if self.expert is None else torch.cat([self.expert, *made]),
            extra=None if found[0].extra is None else self.extra,
            losses={**self.losses, **losses},
        )

    def _of_expert(self, number: int) -> Features:
        """The rows that came through one expert, as a record of a network without experts."""
        rows = self.expert_rows[number]
        partners, share = self.partner_targets, self.target_weight
        return replace(
            self,
            features=self.features[rows],
            targets=self.targets[rows],
            source_index=self.source_index[rows],
            synthetic=self.synthetic[rows],
            partner_targets=None if partners is None else partners[rows],
            target_weight=None if share is None else share[rows],
            extra=None if self.extra is None else self.extra._of_expert(number),
            expert=None,
            expert_rows=(),
            extras={},
            losses={},
            kept={},
        )

    def append(self, features: Tensor, targets: Tensor, source_index: Tensor, expert: Tensor | None = None) -> Features:
        """A copy with synthetic rows added at the end; a mixed batch gives them one label only.

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
            expert=None if self.expert is None else torch.cat([self.expert, expert]),  # type: ignore[list-item]
        )
