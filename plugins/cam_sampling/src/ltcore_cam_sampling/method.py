"""The method `cam_sampling`."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from pydantic import Field
from torch import Tensor

from ltcore import Batch, Context, Method, Options, hookimpl
from ltcore_cam_sampling.functional import boxes, class_activation, foreground, made_share, paste, sources


class CamSamplingOptions(Options):
    """Options of CAM-based sampling; the defaults are those of the authors' code for CIFAR."""

    guide: str | None = None
    """The earlier stage whose network finds foregrounds; by default the stage before."""
    share: float = Field(default=0.75, ge=0.0)
    """Foreground is where the activation is at least this share of its mean over the image."""
    at_most: int | None = Field(default=None, ge=1)
    """Classes with as many images or more get none that are made, and the others no more than this: 100 on ImageNet-LT.
    By default every class is filled up to the largest."""


class CamSampling(Method[CamSamplingOptions]):
    """CAM-based sampling (Zhang et al. 2021): a part of the rare classes' rows has its foreground moved.

    How classes are drawn is the stage's sampler's; the paper draws them alike.
    """

    interface = "1.1"
    requires = frozenset({"earlier_stage", "feature_maps", "one_network"})
    tap = "maps"
    made: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Room for the share of each class that is made, [C]."""
        self.register_buffer("made", torch.zeros(context.num_classes))

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        """Take the stage's counts, and see that the guide's stage is there.

        Raises:
            RunError: it is not.
        """
        context.frozen_model(self.options.guide)
        self.made.copy_(made_share(context.class_counts, self.options.at_most))

    @hookimpl
    def mix_inputs(self, batch: Batch, context: Context) -> Batch:
        """The batch, with the foreground of some rows moved; as many of a class as are made."""
        images, targets = batch.images, batch.targets
        guide = context.frozen_model(self.options.guide)
        uniform = torch.rand(len(targets), 6, generator=context.generator, device=images.device)
        height, width = images.shape[2:]
        with torch.no_grad():
            weight = cast("Tensor", guide.classifier.weight)[targets]
            activation = class_activation(guide.backbone.forward_maps(images), weight, height, width)
            mask = foreground(activation, self.options.share)
            changed = paste(images, mask, sources(boxes(mask), uniform[:, 1:], height, width))
        made = uniform[:, 0] < self.made[targets]
        return replace(batch, images=torch.where(made[:, None, None, None], changed, images))
