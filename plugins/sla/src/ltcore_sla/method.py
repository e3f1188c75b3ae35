"""The method `sla`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from ltcore_deferred import effective_number_weights
from ltcore_ldam import NormalisedClassifier, ldam_margins, subtract_margin
from pydantic import Field, model_validator
from torch import Tensor, nn

from ltcore import Batch, Context, DataError, Features, Method, Options, hookimpl
from ltcore_sla.functional import aggregated, changed_copies, distillation_loss, joint_labels


class SLAOptions(Options):
    """Options of SLA; the defaults are those of the authors' code on balanced data."""

    rotations: Literal[1, 2, 4] = 4
    """How many rotations of an image are told apart: by 90 degrees (4), by 180 (2), none (1)."""
    colours: Literal[1, 3, 6] = 1
    """How many orders of the three channels are told apart; above 1 the images need three."""
    temperature: float = Field(default=1.0, gt=0.0)
    """What both classifiers' logits are divided by in the distillation."""
    max_margin: float | None = Field(default=None, ge=0.0)
    """LDAM's margin of the rarest class, for the joint classifier: 0.5 beside `ldam`. By default it is a linear layer
    with cross-entropy."""
    scale: float = Field(default=30.0, gt=0.0)
    """What the joint classifier's cosines are multiplied with, where it has margins; that of `ldam`."""
    reweight_epoch: int | None = Field(default=None, ge=0)
    """First epoch of the stage, counted from 0, in which the joint loss has class weights: `start_epoch` of `drw`. By
    default it has none."""
    beta: float = Field(default=0.9999, ge=0.0, lt=1.0)
    """Of those weights: that of `drw`."""

    @model_validator(mode="after")
    def _changes_something(self) -> SLAOptions:
        if self.changes == 1:
            raise ValueError(
                "one rotation and one order of the channels leave nothing to tell apart; raise one of them"
            )
        return self

    @property
    def changes(self) -> int:
        """M, copies of each image."""
        return self.rotations * self.colours


class SLA(Method[SLAOptions]):
    """Self-supervised label augmentation with self-distillation (Lee et al. 2020, SLA+SD).

    Made when the run starts: `joint`, the classifier of classes and changes. The stage's own classifier learns from the
    unchanged images, and from the joint one's aggregated answer; it alone is tested.
    """

    interface = "1.1"
    requires = frozenset({"hard_labels", "one_network", "own_parameters_train"})
    auxiliary = ("joint", "distillation")
    joint: nn.Module
    margins: Tensor
    weights: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make the joint classifier, and keep margins [C] and class weights [C] in buffers.

        Raises:
            DataError: a class has no training images, where margins or weights are asked for.
        """
        (width,), options = context.feature_shape("pooled"), self.options
        outputs, ones = context.num_classes * options.changes, torch.ones(context.num_classes)
        self.joint = nn.Linear(width, outputs)
        margin, weighs = options.max_margin, options.reweight_epoch is not None
        if margin is not None:
            self.joint = NormalisedClassifier(width, outputs, options.scale)
        try:
            margins = 0 * ones if margin is None else options.scale * ldam_margins(context.class_counts, margin)
            weights = effective_number_weights(context.class_counts, options.beta) if weighs else ones
        except ValueError as error:
            raise DataError(str(error)) from error
        self.register_buffer("margins", margins)
        self.register_buffer("weights", weights)

    @hookimpl
    def extra_rows(self, indices: list[Tensor]) -> list[Tensor]:
        """Room for rows that are loaded from nowhere: `mix_inputs` makes them of the batch's images as they are."""
        return [batch[:0] for batch in indices]

    @hookimpl
    def mix_inputs(self, batch: Batch) -> Batch:
        """The batch, and behind it the changed copies of its images.

        Raises:
            DataError: an order of channels is asked for, and there are not three.
        """
        options, copies = self.options, self.options.changes - 1
        if options.colours > 1 and batch.images.shape[1] != 3:
            raise DataError(f"images have {batch.images.shape[1]} channels, and option colours is for 3; set it to 1")
        changed = Batch(
            images=changed_copies(batch.images, options.rotations, options.colours),
            targets=batch.targets.repeat(copies),
            source_index=batch.source_index.repeat(copies),
        )
        return replace(batch, extra=changed)

    @hookimpl
    def auxiliary_losses(self, features: Features, logits: Tensor, context: Context) -> dict[str, Tensor]:
        """The joint loss over all copies, and the distillation over the unchanged images."""
        changed, changes = features.extra, self.options.changes
        assert changed is not None  # made in every step
        images = len(changed.targets) // (changes - 1)  # rows that others have appended stand behind them
        targets = features.targets[:images]
        with torch.autocast(logits.device.type, enabled=False):
            pooled = torch.cat([features.features[:images], changed.features]).float()
            joint = self.joint(pooled)
            distillation = distillation_loss(logits[:images], aggregated(joint, changes), self.options.temperature)
            loss = self._joint_loss(joint, targets, context.epoch)
        return {"joint": loss, "distillation": distillation}

    def _joint_loss(self, logits: Tensor, targets: Tensor, epoch: int) -> Tensor:
        """The mean of [M * B] loss values, weighted from `reweight_epoch` on, 0-d."""
        options, labels, start = self.options, joint_labels(targets, self.options.changes), self.options.reweight_epoch
        if options.max_margin:
            logits = subtract_margin(logits, labels, self.margins.repeat_interleave(options.changes))
        if start is None or epoch < start:
            return F.cross_entropy(logits, labels)
        return F.cross_entropy(logits, labels, self.weights.repeat_interleave(options.changes))
