"""The method `autoaugment_by_class`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ltcore import ClassPools, Context, Method, Options, RecipeError, evaluating, hookimpl
from ltcore_autoaugment_by_class.functional import draw_test, next_levels, passed
from ltcore_autoaugment_by_class.operations import Augmentation

#: Pixel values of the images that are looked at together in a test of the levels; 256 MB.
_VALUES_AT_ONCE = 2**26


class AutoAugmentByClassOptions(Options):
    """Options of CUDA; the defaults are the authors' for CIFAR-100-LT."""

    probability: float = Field(default=0.5, ge=0.0, le=1.0)
    """How many of a class's images are augmented at its level, the rest not at all (p_aug); 0 changes nothing."""
    highest_level: int = Field(default=10, ge=0)
    """The highest level that a class can reach: so many operations, at so much strength."""
    scale: int = Field(default=30, ge=1)
    """The level that would be an operation's full strength; at least `highest_level`."""
    tries: int = Field(default=10, ge=1)
    """Images a class at level 0 of a test (T); at level l it is ``l + 1`` times as many."""
    threshold: float = Field(default=0.6, ge=0.0, lt=1.0)
    """Share of a class's images that must be exceeded at each level up to its own for it to rise (gamma)."""
    update_every: int = Field(default=1, ge=1)
    """Epochs from one test of the levels to the next, the first before the stage's first epoch."""
    adjust_test: bool = False
    """Whether the test subtracts the logarithm of the class prior from the logits, as in post-hoc logit adjustment."""
    largest_shift: float = Field(default=100.0, ge=0.0)
    """Pixels by which images would be shifted at full strength; the authors have 100 for images of 32 and of 224."""
    cutout: int = Field(default=0, ge=0)
    """Side in pixels of a black square in every image, behind the operations; 0 for none; the authors: 16 for CIFAR."""


class AutoAugmentByClass(Method[AutoAugmentByClassOptions]):
    """CUDA (Ahn et al. 2023): each class is augmented as strongly as the network has learnt to bear."""

    interface = "1.1"
    # Levels move within two epochs; and images of 8 pixels are not shifted out of sight.
    checked_with: ClassVar = {"threshold": 0.1, "tries": 2, "largest_shift": 25.0, "cutout": 2}

    levels: Tensor

    def __init__(self, options: AutoAugmentByClassOptions | None = None) -> None:
        super().__init__(options)
        o = self.options
        if o.highest_level > o.scale:
            raise RecipeError(
                f"highest_level {o.highest_level} is above scale {o.scale}, which is full strength; raise it"
            )

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make room for the levels."""
        self.register_buffer("levels", torch.zeros(context.num_classes, dtype=torch.int64))

    @hookimpl
    def on_stage_start(self) -> None:
        """Every class begins without augmentation."""
        self.levels.zero_()

    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        """See at which levels each class is still recognised, and move its level by one."""
        if context.epoch % self.options.update_every == 0:
            correct, shown = self._test(context)
            passes = passed(correct, shown, self.levels, self.options.threshold)
            self.levels.copy_(next_levels(self.levels, passes, self.options.highest_level))

    @hookimpl
    def image_transform(self) -> Augmentation | None:
        """The operations of this epoch's levels; None while there is nothing to do."""
        levels, o = self.levels.tolist(), self.options
        return self._augmentation(levels, o.probability) if o.cutout or (o.probability and any(levels)) else None

    def logged(self) -> Mapping[str, Tensor]:
        """The level of each class during the epoch, [C]."""
        return {"level": self.levels.float()}

    def _augmentation(self, levels: list[int], probability: float) -> Augmentation:
        o = self.options
        return Augmentation(tuple(levels), probability, o.scale, o.largest_shift, o.cutout)

    def _test(self, context: Context) -> tuple[Tensor, Tensor]:
        """How many images of each class are recognised at each level up to its own, and how many there were, [C, K]."""
        levels, device = self.levels.cpu(), context.device
        pools = ClassPools(context.training_targets, context.num_classes)
        seed = int(torch.randint(2**62, (), generator=context.generator, device=device))
        drawing = torch.Generator().manual_seed(seed)
        plan = draw_test(levels, self.options.tries)
        correct = torch.zeros(context.num_classes, len(plan), dtype=torch.int64, device=device)
        shown = torch.zeros_like(correct)
        prior = (context.class_counts / context.class_counts.sum()).log() if self.options.adjust_test else None
        some = context.images("train", torch.zeros(1, dtype=torch.int64))
        with evaluating(context.model):
            for level, classes in enumerate(plan):
                change = self._augmentation([level] * context.num_classes, 1.0)
                for part in torch.split(classes, max(_VALUES_AT_ONCE // some.numel(), 1)):
                    images = context.images("train", pools.draw_images(part, drawing), change, augmented=True)
                    logits = context.model(images)
                    guesses = (logits if prior is None else logits - prior).argmax(1)
                    labels = part.to(device)
                    correct[:, level].index_add_(0, labels, (guesses == labels).long())
                    shown[:, level].index_add_(0, labels, torch.ones_like(labels))
        return correct, shown
