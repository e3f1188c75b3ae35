"""One training step: features through the taps, logits, the losses, and the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltcore import ranks
from ltcore.contract.experts import as_rows, row_logits
from ltcore.contract.hookspecs import adjust_logits, auxiliary_losses, compute_loss, mix_inputs, sample_weights
from ltcore.contract.records import Batch, Features, count_rows
from ltcore.errors import PluginError
from ltcore.networks.optimizers import set_learning_rate
from ltcore.training.accumulation import Accumulation, Parts
from ltcore.training.shares import Shares

if TYPE_CHECKING:
    from ltcore.contract.model import Model
    from ltcore.discovery.binding import Hooks
    from ltcore.training.acceleration import Accelerator


class StepForward:
    """The forward pass of a stage.

    Args:
        model: the model.
        hooks: what the stage's methods answer.
        start: what a batch holds: ``images``, or cached features at ``maps`` or ``pooled``.
        classification: whether there is a classification loss at all.
        autocast: dtype of the forward pass; None for float32 throughout.
        accumulation: how much of a batch goes through the backbone at a time; None for all of it.
        accelerator: stands in for the backbone up to the first tap behind its inner ones; None for the backbone itself.
    """

    def __init__(
        self,
        model: Model,
        hooks: Hooks,
        start: str,
        classification: bool,
        autocast: torch.dtype | None,
        accumulation: Accumulation | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.model, self.hooks, self.start = model, hooks, start
        self.classification, self.autocast, self.accumulation = classification, autocast, accumulation

    def __call__(self, batch: Batch, class_weights: Tensor | None, factors: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted loss terms of a batch, each 0-d float32; their sum is what is minimised.

        Args:
            batch: its ``images`` are features where the stage starts at a cache.
            class_weights: [C], or None for equal weights.
            factors: [N] for the loss values of the batch's rows, see `ltcore.contract.objective.Objective`.
        """
        return self.losses(self.hooks.call(mix_inputs, batch), len(batch.targets), class_weights, factors)

    def losses(
        self, batch: Batch, size: int, class_weights: Tensor | None, factors: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As a call, of a batch that ``mix_inputs`` has seen.

        Args:
            batch: the batch.
            size: images of the batch, before methods changed their number.
            class_weights: as in a call.
            factors: as in a call.
        """
        with self._low_precision(batch.images):
            record = self._features(batch, self.accelerator, size)
            logits = row_logits(self.model.classifier, record.features, record.expert).float()
        if factors is not None and record.expert_rows:
            before = record.expert_rows[0].stop - len(factors)  # rows that were appended before the network split
            factors = torch.cat([factors, factors.new_ones(before)]).repeat(len(record.expert_rows))
        terms: dict[str, Tensor] = {}
        if self.classification:
            terms["classification"] = classification_loss(self.hooks, logits, record, class_weights, factors)
        with self._low_precision(batch.images):
            terms.update(self.hooks.call(auxiliary_losses, record, logits))
        return {name: value.float() for name, value in terms.items()}

    def record(self, batch: Batch) -> Features:
        """The rows of a batch that reach the classifier, those that methods have made among them."""
        with self._low_precision(batch.images):
            return self._features(self.hooks.call(mix_inputs, batch))

    def plain(self, images: Tensor) -> Tensor:
        """Logits [N, C] float32 of images alone, with no method's part in them."""
        with self._low_precision(images):
            logits: Tensor = self.model(images).float()
            return logits

    def in_pieces(self) -> str:
        """What takes the gradient of a batch apart, so that it cannot be differentiated again; empty if nothing."""
        if ranks.size() > 1:
            return f"{ranks.size()} processes share the batch out; train with one"
        if self.accumulation:
            return f"accumulate: {self.accumulation.parts} computes the backbone's in parts; use accumulate: 1"
        return ""

    def _low_precision(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None)

    def _first_tap(self) -> str:
        return next((tap for tap in self.model.backbone.taps if tap in self.hooks.taps), "pooled")

    def _features(self, batch: Batch, accelerator: Accelerator | None = None, size: int = 0) -> Features:
        """Run the backbone; at each tap the fold sees the rows as they are there.

        Of several processes each runs its part of the rows, and at a tap has those of all. With an accumulation the
        rows of a process go to the first tap in parts, and on from there together.
        """
        images, experts = batch.images if self.start == "images" else None, self.model.backbone.experts
        shared = self.start == "images" and ranks.size() > 1
        shares = Shares(experts, batch.images.device) if shared else None
        rows = batch.rows if experts == 1 or self.start == "images" else as_rows(batch.rows)
        number = self.accumulation.number(len(rows)) if self.accumulation and self.start == "images" else 1
        rows = rows if shares is None else shares.own(rows)
        parts = Parts(self.model, self._first_tap(), rows, number, self.autocast) if number > 1 else None
        record: Features | None = None

        def recorded(x: Tensor) -> Features:
            if parts and record is None:
                x = parts.joined(x)
            if shares:
                x = shares.joined(x)
            if experts > 1 and (record is None or not record.expert_rows):
                count = count_rows(batch if record is None else record)
                if len(x) == experts * count:
                    return (Features.of(batch, x[:count], images) if record is None else record).split(x, experts)
            return Features.of(batch, x, images) if record is None else record.with_rows(x)

        def through(tap: str) -> Callable[[Tensor], Tensor]:
            def change(x: Tensor) -> Tensor:
                nonlocal record
                record = self.hooks.taps[tap](recorded(x))
                return record.rows if shares is None else shares.own(record.rows)

            return change

        taps = {tap: through(tap) for tap in self.hooks.taps}
        if accelerator is not None:
            pooled = self.model.backbone.run(accelerator(rows, size), accelerator.gives, taps)
        else:
            pooled = self.model.backbone.run(parts.last if parts else rows, self.start, taps)
        last = recorded(pooled)
        if experts > 1 and not last.expert_rows:
            raise PluginError(
                f"the backbone says that it has {experts} experts, and gave {len(pooled)} rows of features for "
                f"{count_rows(last)} rows; tell its author"
            )
        return last


def classification_loss(
    hooks: Hooks,
    logits: Tensor,
    record: Features,
    class_weights: Tensor | None,
    factors: Tensor | None = None,
) -> Tensor:
    """The mean loss of a batch, 0-d.

    With class weights it is the weighted mean, divided by the sum of the samples' weights (as torch's weighted
    cross-entropy is). A mixed sample counts for each of its two labels with that label's share. What ``sample_weights``
    gives scales the loss values, and no sum of weights.

    Args:
        hooks: what the stage's methods answer.
        logits: [N, C] float32.
        record: the rows' labels.
        class_weights: [C], or None.
        factors: [N0] more factors for the first rows, those of the batch; None for 1.
    """

    def values(targets: Tensor, record: Features) -> Tensor:
        adjusted = hooks.call(adjust_logits, logits, targets, record)
        loss = hooks.call(compute_loss, adjusted, targets, record)
        scale = hooks.call(sample_weights, loss, record)
        loss = loss if scale is None else loss * scale
        return loss if factors is None else torch.cat([loss[: len(factors)] * factors, loss[len(factors) :]])

    loss, partners, share = values(record.targets, record), record.partner_targets, record.target_weight
    if partners is not None and share is not None:
        rest = 1 - share
        mirrored = replace(record, targets=partners, partner_targets=record.targets, target_weight=rest)
        partner = values(partners, mirrored)
        if class_weights is None:
            return (share * loss + rest * partner).mean()
        first, second = share * class_weights[record.targets], rest * class_weights[partners]
        return (first * loss + second * partner).sum() / (first + second).sum()
    if class_weights is None:
        return loss.mean()
    weights = class_weights[record.targets]
    return (weights * loss).sum() / weights.sum()


class Update:
    """From a batch's losses to the next weights.

    Args:
        optimizer: over what trains.
        parameters: what trains.
        clip_grad_norm: the largest norm of the whole gradient; None for no limit.
        backward: whether the gradients are to be computed; else a method has (`ltcore.training.gradients`).
        statistics: what the forward pass has learned from this process's rows; of several processes, the first one's
            holds for all, as PyTorch has it.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[Tensor],
        clip_grad_norm: float | None,
        backward: bool = True,
        statistics: Sequence[Tensor] = (),
    ) -> None:
        self.optimizer, self.parameters, self.clip_grad_norm = optimizer, parameters, clip_grad_norm
        self.backward, self.statistics = backward, statistics

    def __call__(self, losses: dict[str, Tensor], rate: float) -> Tensor:
        """Take a step with a learning rate; returns the whole loss, 0-d and detached."""
        loss = torch.stack(list(losses.values())).sum()
        set_learning_rate(self.optimizer, rate)
        if self.backward:
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        self.take()
        ranks.as_the_first(self.statistics)
        return loss.detach()

    def take(self) -> None:
        """Take a step with the gradients and the learning rate as they are."""
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_grad_norm)
        self.optimizer.step()
