"""One training step: features through the taps, logits, the losses, and the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltcore.contract.experts import row_logits
from ltcore.contract.hookspecs import adjust_logits, auxiliary_losses, compute_loss, mix_inputs
from ltcore.contract.records import Batch, Features
from ltcore.errors import PluginError
from ltcore.networks.optimizers import set_learning_rate

if TYPE_CHECKING:
    from ltcore.contract.model import Model
    from ltcore.discovery.binding import Hooks


class StepForward:
    """The forward pass of a stage.

    Args:
        model: the model.
        hooks: what the stage's methods answer.
        start: what a batch holds: ``images``, or cached features at ``maps`` or ``pooled``.
        classification: whether there is a classification loss at all.
        autocast: dtype of the forward pass; None for float32 throughout.
    """

    def __init__(
        self, model: Model, hooks: Hooks, start: str, classification: bool, autocast: torch.dtype | None
    ) -> None:
        self.model, self.hooks, self.start = model, hooks, start
        self.classification, self.autocast = classification, autocast

    def __call__(self, batch: Batch, class_weights: Tensor | None) -> dict[str, Tensor]:
        """The weighted loss terms of a batch, each 0-d float32; their sum is what is minimised.

        Args:
            batch: its ``images`` are features where the stage starts at a cache.
            class_weights: [C], or None for equal weights.
        """
        batch = self.hooks.call(mix_inputs, batch)
        low_precision = torch.autocast(batch.images.device.type, self.autocast, enabled=self.autocast is not None)
        with low_precision:
            record = self._features(batch)
            logits = row_logits(self.model.classifier, record.features, record.expert).float()
        terms: dict[str, Tensor] = {}
        if self.classification:
            terms["classification"] = classification_loss(self.hooks, logits, record, class_weights)
        with low_precision:
            terms.update(self.hooks.call(auxiliary_losses, record, logits))
        return {name: value.float() for name, value in terms.items()}

    def _features(self, batch: Batch) -> Features:
        """Run the backbone; at each tap the fold sees the rows as they are there."""
        images, experts = batch.images if self.start == "images" else None, self.model.backbone.experts
        record: Features | None = None

        def recorded(x: Tensor) -> Features:
            now = Features.of(batch, x, images) if record is None else replace(record, features=x)
            here = experts > 1 and now.expert is None and len(x) == experts * len(now.targets)
            return now.split(x, experts) if here else now

        def through(tap: str) -> Callable[[Tensor], Tensor]:
            def change(x: Tensor) -> Tensor:
                nonlocal record
                record = self.hooks.taps[tap](recorded(x))
                return record.features

            return change

        pooled = self.model.backbone.run(batch.images, self.start, {tap: through(tap) for tap in self.hooks.taps})
        record = recorded(pooled)
        if experts > 1 and record.expert is None:
            raise PluginError(
                f"the backbone says that it has {experts} experts, and gave {len(pooled)} rows of features for "
                f"{len(record.targets)} rows of its batch; tell its author"
            )
        if record.source_only is not None:
            raise PluginError(
                "the sampler brought images that are sources only, and no method's augment_features used and dropped "
                "them; tell the author of the sampler's plugin"
            )
        return record


def classification_loss(hooks: Hooks, logits: Tensor, record: Features, class_weights: Tensor | None) -> Tensor:
    """The mean loss of a batch, 0-d.

    With class weights it is the weighted mean, divided by the sum of the samples' weights (as torch's weighted
    cross-entropy is), and rows that carry a weight of their own count as their class's weight times that. A mixed
    sample counts for each of its two labels with that label's share.

    Args:
        hooks: what the stage's methods answer.
        logits: [N, C] float32.
        record: the rows' labels.
        class_weights: [C], or None.
    """

    def values(targets: Tensor) -> Tensor:
        return hooks.call(compute_loss, hooks.call(adjust_logits, logits, targets), targets)

    loss = values(record.targets)
    own, weights = record.loss_weight, _row_weights(class_weights, record.targets, record.loss_weight)
    if record.partner_targets is not None and record.target_weight is not None:
        share, rest = record.target_weight, 1 - record.target_weight
        partner = values(record.partner_targets)
        partner_weights = _row_weights(class_weights, record.partner_targets, own)
        if weights is None or partner_weights is None:
            return (share * loss + rest * partner).mean()
        first, second = share * weights, rest * partner_weights
        return (first * loss + second * partner).sum() / (first + second).sum()
    if weights is None:
        return loss.mean()
    return (weights * loss).sum() / weights.sum()


def _row_weights(class_weights: Tensor | None, targets: Tensor, own: Tensor | None) -> Tensor | None:
    """[N], what rows count for by their class and by themselves; None where all count the same."""
    if class_weights is None:
        return own
    weights = class_weights[targets]
    return weights if own is None else weights * own


class Update:
    """From a batch's losses to the next weights.

    Args:
        optimizer: over what trains.
        parameters: what trains.
        clip_grad_norm: the largest norm of the whole gradient; None for no limit.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], clip_grad_norm: float | None
    ) -> None:
        self.optimizer, self.parameters, self.clip_grad_norm = optimizer, parameters, clip_grad_norm

    def __call__(self, losses: dict[str, Tensor], rate: float) -> Tensor:
        """Take a step with a learning rate; returns the whole loss, 0-d and detached."""
        loss = torch.stack(list(losses.values())).sum()
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_grad_norm)
        self.optimizer.step()
        return loss.detach()
