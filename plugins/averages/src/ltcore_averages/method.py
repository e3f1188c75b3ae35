"""The methods `ema` and `swa`."""

from __future__ import annotations

from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from ltcore import Context, Method, Options, PluginError, hookimpl
from ltcore_averages.functional import average_into, ema_share, put_back, swa_share


class EMAOptions(Options):
    """Options of the exponential moving average."""

    decay: float = Field(default=0.999, ge=0.0, lt=1.0)
    """Share of the old average in each step; 0 keeps the newest weights, and trains as without the method."""
    warmup: bool = True
    """Whether the share begins small, as ``(1 + n) / (10 + n)`` after n steps, until it reaches `decay`."""
    start_epoch: int = Field(default=0, ge=0)
    """First epoch of the stage, counted from 0, whose steps are averaged."""


class SWAOptions(Options):
    """Options of stochastic weight averaging."""

    start_epoch: int = Field(default=160, ge=0)
    """First epoch of the stage, counted from 0, whose weights are averaged: late, with a rate that still moves them."""


OptionsT = TypeVar("OptionsT", bound=EMAOptions | SWAOptions)


class _Average(Method[OptionsT]):
    """Keeps an average of what a stage trains, and leaves it in the model when the stage ends.

    What is averaged are the backbone's and the classifier's parameters that train, and the statistics of batch norm
    that learn. Other methods' modules are left as they are.
    """

    interface = "1.1"

    average: Tensor
    averaged: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make room for the backbone, and for any classifier of about the size of a linear one; of experts for each."""
        backbone = context.model.backbone
        size = sum(each.numel() for each in (*backbone.parameters(), *backbone.buffers()))
        wide, classes = backbone.feature_dim, context.num_classes
        each = classes * (wide + 1) + 2 * (classes + wide) + 16
        if backbone.experts > 1:
            each += 32 * (wide + classes)  # for what combines them, such as a router's gates
        room = size + backbone.experts * each
        self.register_buffer("average", torch.zeros(room))
        self.register_buffer("averaged", torch.zeros((), dtype=torch.int64))

    @hookimpl
    def on_stage_start(self) -> None:
        """Begin anew: each stage trains something else."""
        self.average.zero_()
        self.averaged.zero_()

    @hookimpl
    def on_stage_end(self, context: Context) -> None:
        """Give the model the average, if there is one."""
        if self.averaged > 0:
            put_back(self.average, self._values(context))

    def _add(self, context: Context, share: Tensor) -> None:
        average_into(self.average, self._values(context), share)
        self.averaged.add_(1)

    def _values(self, context: Context) -> list[Tensor]:
        """What is averaged, always in the same order.

        Raises:
            PluginError: there is more of it than room.
        """
        parts = (context.model.backbone, context.model.classifier)
        values: list[Tensor] = [each for part in parts for each in part.parameters() if each.requires_grad]
        learning = [module for part in parts for module in part.modules() if module.training]
        values += [each for module in learning for each in module.buffers(recurse=False) if each.is_floating_point()]
        if sum(value.numel() for value in values) > len(self.average):
            raise PluginError(
                f"'{context.name}' has room for a classifier of about the size of a linear one, and "
                f"{type(context.model.classifier).__name__} is larger; leave one of the two out"
            )
        return values


class EMA(_Average[EMAOptions]):
    """Exponential moving average of the weights over steps (Polyak and Juditsky 1992, as it is used today)."""

    @hookimpl
    def after_step(self, context: Context) -> None:
        """Move the average towards the new weights."""
        if context.epoch >= self.options.start_epoch:
            self._add(context, ema_share(self.averaged, self.options.decay, self.options.warmup))


class SWA(_Average[SWAOptions]):
    """Stochastic weight averaging (Izmailov et al. 2018): the mean of the weights at the ends of late epochs."""

    checked_with: ClassVar = {"start_epoch": 0}

    @hookimpl
    @torch.no_grad()
    def on_epoch_end(self, context: Context) -> None:
        """Take the weights at the end of this epoch into the average."""
        if context.epoch >= self.options.start_epoch:
            self._add(context, swa_share(self.averaged))
