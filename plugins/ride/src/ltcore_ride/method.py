"""The methods `ride` and `ride_router`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ltcore import Backbone, Context, DataError, Features, Method, Options, RecipeError, Stage, hookimpl
from ltcore_ride.functional import class_temperatures, diversity_loss, gate_loss, gate_targets, used_experts
from ltcore_ride.network import split_network
from ltcore_ride.router import RoutedExperts


class RIDEOptions(Options):
    """Options of RIDE; the defaults are those of the authors' code for large sets."""

    experts: int = Field(default=3, ge=1)
    """E: how many experts the network is split into. 1 with `width` 1 leaves it as it is."""
    stages: int = Field(default=2, ge=1)
    """How many of the network's last stages each expert has for itself; the others are shared."""
    width: float = Field(default=0.75, gt=0, le=1)
    """Share of the channels that are left in an expert's stages; 1 for all."""
    diversity: float = Field(default=0.2, ge=0)
    """lambda: what the loss that drives the experts apart counts for; 0.45 on CIFAR-100-LT."""
    temperature: float = Field(default=1.0, gt=0)
    """What logits are divided by in that loss, before `temperature_epoch`; from then on what the largest class has."""
    temperature_ratio: float = Field(default=0.05, ge=0, lt=1)
    """r: how much a class's share of the images decides of its temperature; 0.02 on ImageNet-LT, 0.015 on
    iNaturalist."""
    temperature_epoch: int | None = Field(default=None, ge=0)
    """First epoch of the stage, counted from 0, in which each class has a temperature of its own; by default none. In
    the paper the one from which `drw` weighs the classes: 160 on CIFAR."""


class RIDE(Method[RIDEOptions]):
    """Distribution-aware diverse experts (Wang et al. 2021), see `split_network` and `diversity_loss`.

    Under ``backbone.adapt`` it splits the network, and in a stage its loss keeps the experts apart. A loss is the sum
    of the experts' losses there, where core takes their mean. In a network of one expert nothing is changed.
    """

    interface = "1.1"
    checked_with: ClassVar = {"temperature_epoch": 1}
    provides = frozenset({"summed_experts"})
    auxiliary = ("diversity",)
    temperatures: Tensor

    def check_stage(self, stage: Stage) -> None:
        """Refuse a stage that ends before the classes have their temperatures.

        Raises:
            RecipeError: the stage has a number of epochs, and `temperature_epoch` is not below it.
        """
        start = self.options.temperature_epoch
        if start is not None and stage.epochs is not None and start >= stage.epochs:
            raise RecipeError(
                f"temperature_epoch {start} never comes in {stage.epochs} epochs, counted from 0; lower it"
            )

    @hookimpl
    def adapt_backbone(self, backbone: Backbone) -> Backbone:
        """The network with its last stages once for each expert.

        Raises:
            RecipeError: it has no stages that can be split so.
        """
        options = self.options
        return split_network(backbone, options.experts, options.stages, options.width)

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep the classes' temperatures [C] in a buffer.

        Raises:
            DataError: a class has no training images.
        """
        counts = context.class_counts
        if not bool((counts > 0).all()):
            raise DataError("a class has no training images, and every class needs some for its temperature")
        self.register_buffer("temperatures", class_temperatures(counts, self.options.temperature_ratio))

    @hookimpl
    def sample_weights(self, values: Tensor, features: Features) -> Tensor | None:
        """E for every row: the sum of the experts' losses, where core takes their mean."""
        experts = len(features.expert_rows)
        return torch.full_like(values, experts) if experts else None

    @hookimpl
    def auxiliary_losses(self, features: Features, logits: Tensor, context: Context) -> dict[str, Tensor]:
        """The loss that drives the experts apart, times `diversity`; 0 in a network of one."""
        options, rows = self.options, features.expert_rows
        if not rows or options.diversity == 0:
            return {"diversity": logits.new_zeros(())}
        start = options.temperature_epoch
        own = start is not None and context.epoch >= start
        temperatures = options.temperature * self.temperatures if own else options.temperature
        each = torch.stack([logits[own_rows] for own_rows in rows], 1)
        return {"diversity": options.diversity * diversity_loss(each, temperatures)}


class RIDERouterOptions(Options):
    """Options of the router; the defaults are those of the authors' code."""

    top: int = Field(default=30, ge=1)
    """How many of the largest mean logits a gate sees, at most the number of classes; 50 on ImageNet-LT and
    iNaturalist."""
    hidden: int = Field(default=16, ge=1)
    """Width of the gates' hidden layers."""
    positive_weight: float = Field(default=100.0, gt=0)
    """What an image counts for that more experts would help, among those that they would not."""


class RIDERouter(Method[RIDERouterOptions]):
    """Gates that ask another expert only where it helps (Wang et al. 2021), see `RoutedExperts` and `gate_targets`.

    For a stage behind those that trained the experts, with ``classification: false`` and
    ``trainable: [classifier.ensemble]``. From then on evaluation, calibration and export use the gates.
    """

    interface = "1.1"
    requires = frozenset({"earlier_stage", "experts", "hard_labels"})
    auxiliary = ("gates",)
    asked: Tensor
    images: Tensor

    def __init__(self, options: RIDERouterOptions | None = None) -> None:
        """Make the buffers that count which experts the images of an epoch have asked."""
        super().__init__(options)
        self.register_buffer("asked", torch.zeros((), dtype=torch.float64))
        self.register_buffer("images", torch.zeros((), dtype=torch.float64))

    @hookimpl
    def build_ensemble(self, feature_dim: int, num_classes: int, experts: int) -> nn.Module:
        """The gates, untrained."""
        return RoutedExperts(feature_dim, num_classes, experts, self.options.top, self.options.hidden)

    @hookimpl
    def on_epoch_start(self) -> None:
        """Count anew."""
        self.asked.zero_()
        self.images.zero_()

    def logged(self) -> Mapping[str, Tensor]:
        """How many experts a training image of the epoch would have asked."""
        return {"experts asked": (self.asked / self.images.clamp(min=1)).float()}

    @hookimpl
    def auxiliary_losses(self, features: Features, logits: Tensor, context: Context) -> dict[str, Tensor]:
        """The gates' loss; it trains nothing but them."""
        rows = features.expert_rows
        with torch.autocast(logits.device.type, enabled=False):
            pooled = torch.stack([features.features[own] for own in rows], 1).detach().float()
            each = torch.stack([logits[own] for own in rows], 1).detach()
            ensemble = cast(RoutedExperts, context.model.classifier.ensemble)
            scores = ensemble.scores(pooled, each)
            wanted = gate_targets(each, features.targets[rows[0]])
            self.asked += used_experts(scores.detach()).sum()
            self.images += len(scores)
            return {"gates": gate_loss(scores, wanted, self.options.positive_weight)}
