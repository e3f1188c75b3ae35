"""The method `class_group`."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ltcore import Context, DataError, EpochBatches, Method, Options, PlainSampler, RecipeError, hookimpl
from ltcore_lfme.functional import group_logits


class ClassGroupOptions(Options):
    """Options of a group of classes."""

    least: int = Field(default=1, ge=1)
    """The fewest training images of its classes."""
    most: int | None = Field(default=None, ge=1)
    """The most training images of its classes; by default any number."""

    @model_validator(mode="after")
    def _some_number(self) -> ClassGroupOptions:
        if self.most is not None and self.most < self.least:
            raise ValueError(f"no class has at least {self.least} and at most {self.most} images; most is below least")
        return self

    def members(self, class_counts: Tensor) -> Tensor:
        """Which classes are of the group, [C] to [C] bool."""
        inside = class_counts >= self.least
        return inside if self.most is None else inside & (class_counts <= self.most)

    @property
    def described(self) -> str:
        """Its classes, in words."""
        return f"at least {self.least}" + ("" if self.most is None else f" and at most {self.most}")


class GroupSampler:
    """Batches of some classes' images: core's layout, as if no other image was there.

    Args:
        targets: [N] int64, on the CPU.
        members: [C] bool, on the CPU.
        batch_size: B.
    """

    def __init__(self, targets: Tensor, members: Tensor, batch_size: int) -> None:
        self._members = members
        self._images = members[targets].nonzero()[:, 0]
        self._plain = PlainSampler(targets[self._images], len(members), batch_size)

    def steps_per_epoch(self) -> int:
        """Batches of an epoch in which each image of the group comes once."""
        return self._plain.steps_per_epoch()

    def draw(self, steps: int, distribution: Tensor | None, generator: torch.Generator) -> EpochBatches:
        """See `ltcore.Sampler.draw`; of a distribution, the group's part.

        Raises:
            RecipeError: it draws none of the group's classes.
        """
        if distribution is not None:
            distribution = distribution.cpu() * self._members
            if not bool(distribution.any()):
                raise RecipeError("none of the group's classes is drawn by what says how often each class is; drop one")
        inner = self._plain.draw(steps, distribution, generator)
        return EpochBatches([self._images[batch] for batch in inner.indices])


class ClassGroup(Method[ClassGroupOptions]):
    """A stage that knows one group of classes alone: their images, and a loss among them.

    An expert of LFME (Xiang et al. 2020); by default the group is all classes, and nothing changes but the draws.
    """

    interface = "1.1"
    checked_with: ClassVar = {"least": 15}
    members: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep which classes are members, [C] bool.

        Raises:
            DataError: there are fewer than two.
        """
        members = self.options.members(context.class_counts)
        if int(members.sum()) < 2:
            counts = context.class_counts
            raise DataError(
                f"a group needs two classes to tell apart, and {int(members.sum())} of {len(counts)} have "
                f"{self.options.described} training images (they have from {int(counts.min())} to "
                f"{int(counts.max())}); change least or most"
            )
        self.register_buffer("members", members)

    @hookimpl
    def build_sampler(self, batch_size: int, context: Context) -> GroupSampler:
        """Batches of the group's images; an epoch is once through these."""
        return GroupSampler(context.training_targets, self.members.cpu(), batch_size)

    @hookimpl
    def adjust_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits [N, C], of which those outside of the group count for nothing."""
        return group_logits(logits, self.members, targets)
