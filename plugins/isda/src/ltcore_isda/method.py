"""The methods `isda` and `metasaug`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, one_hot

from ltcore import Context, Features, Method, Objective, Options, RecipeError, hookimpl
from ltcore_isda.functional import (
    ClassStatistics,
    Covariance,
    augmented_logits,
    balanced_draw,
    margins,
    seen_features,
    updated,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What the statistics of all classes may take.
_MOST_BYTES = 4 * 2**30


class ISDAOptions(Options):
    """Options of implicit semantic data augmentation."""

    strength: float = Field(default=0.5, ge=0.0)
    """Strength of the augmentation at the stage's end, the paper's lambda_0; it grows from 0 by the epoch. 0.5 is the
    authors' on CIFAR, 7.5 for ResNet-50 on ImageNet."""
    covariance: Covariance = "full"
    """``full``: a matrix for each class, as on CIFAR; ``diagonal``: variances alone, as on ImageNet."""


class MetaSAugOptions(ISDAOptions):
    """Options of MetaSAug."""

    strength: float = Field(default=0.25, ge=0.0)
    """Strength of the augmentation at the stage's end; the code's default, and 0.75 in its command for CIFAR-100-LT."""
    start_epoch: int = Field(default=160, ge=0)
    """First epoch of the stage, counted from 0, with statistics and augmentation; before it training is plain."""
    meta_rate: float = Field(default=0.1, gt=0.0)
    """Rate of the step that the covariances take on the meta loss."""
    meta_batch_size: int = Field(default=100, ge=1)
    """Held-out images that are drawn in each step, all classes alike; all of them where there are no more."""
    augmented: bool = True
    """Whether they are prepared as training images are, with crops, flips and policies; else as test images."""
    margin: float = Field(default=0.0, ge=0.0)
    """LDAM's margin of the rarest class, taken off the label's logit from `start_epoch` on; 0.5 in MetaSAug-LDAM."""


#: Attention that can be differentiated twice; its fast forms cannot.
_TWICE = sdpa_kernel(SDPBackend.MATH)

OptionsT = TypeVar("OptionsT", bound=ISDAOptions)


class _Augmenting(Method[OptionsT]):
    """Keeps the running statistics of the classes, and adds what they say to the logits."""

    interface = "1.1"
    requires: ClassVar = {"hard_labels", "one_network"}
    mean: Tensor
    covariance: Tensor
    seen: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make the statistics, all 0, as buffers.

        Raises:
            RecipeError: matrices of all classes are too large.
        """
        classes, width = context.num_classes, context.feature_shape("pooled")[0]
        full = self.options.covariance == "full"
        size = 4 * classes * width**2
        if full and size > _MOST_BYTES:
            raise RecipeError(
                f"method '{context.name}': {classes} covariances of {width} features take {size / 2**30:.1f} GiB; set "
                "its option covariance: diagonal"
            )
        self.register_buffer("mean", torch.zeros(classes, width))
        self.register_buffer("covariance", torch.zeros(classes, *([width] * (1 + full))))
        self.register_buffer("seen", torch.zeros(classes))

    def _learn(self, features: Features, context: Context) -> None:
        """Add a batch's own rows to the statistics."""
        rows = seen_features(context.model.classifier, features.features)
        before = ClassStatistics(self.mean, self.covariance, self.seen)
        after = updated(before, rows, features.targets, ~features.synthetic)
        with torch.no_grad():
            for buffer, value in zip(before, after, strict=True):
                buffer.copy_(value)

    def _augmented(self, logits: Tensor, targets: Tensor, covariance: Tensor, context: Context) -> Tensor:
        strength = self.options.strength * context.epoch / context.epochs
        weight = cast("Tensor", context.model.classifier.weight).float()
        return augmented_logits(logits, targets, weight, covariance, strength)


class ISDA(_Augmenting[ISDAOptions]):
    """Implicit semantic data augmentation (Wang et al. 2019), see `augmented_logits` and `updated`."""

    @hookimpl
    def adjust_logits(self, logits: Tensor, targets: Tensor, features: Features, context: Context) -> Tensor:
        """The augmented logits [N, C], with statistics in which the batch counts already."""
        self._learn(features, context)
        return self._augmented(logits, targets, self.covariance, context)


class MetaSAug(_Augmenting[MetaSAugOptions]):
    """Meta semantic augmentation (Li et al. 2021): covariances that take a step on the loss of held-out images.

    With the class weights of `drw` it is the paper's loss.
    """

    requires: ClassVar = {"hard_labels", "one_network", "validation", "second_order"}
    checked_with: ClassVar = {"start_epoch": 0}

    def __init__(self, options: MetaSAugOptions | None = None) -> None:
        """Nothing is learned yet."""
        super().__init__(options)
        self._learned: Tensor | None = None

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make the statistics, and the margins [C], as buffers."""
        super().on_run_start(context)
        self.register_buffer("margins", margins(context.class_counts.clamp(min=1), self.options.margin))

    @hookimpl
    def adjust_logits(self, logits: Tensor, targets: Tensor, features: Features, context: Context) -> Tensor:
        """The augmented logits [N, C] less the margin; the logits themselves before `start_epoch`.

        A batch counts in the statistics of the steps behind it.
        """
        if context.epoch < self.options.start_epoch:
            return logits
        if self.options.margin:
            off = cast("Tensor", self.margins)[targets][:, None]
            logits = logits - one_hot(targets, logits.shape[1]).to(logits) * off
        covariance = self.covariance if self._learned is None else self._learned
        adjusted = self._augmented(logits, targets, covariance, context)
        self._learn(features, context)
        return adjusted

    @hookimpl
    @_TWICE
    def compute_gradients(self, objective: Objective, context: Context) -> dict[str, Tensor]:
        """The gradient of the loss with covariances that have taken a step on the meta loss, one step ahead."""
        if context.epoch < self.options.start_epoch:
            return objective.gradients(objective())
        images, targets = self._meta_set(context)
        covariance = self.covariance.clone().requires_grad_()
        with self._with(covariance):
            steps = objective.gradients(objective(), create_graph=True)
        ahead = {name: objective.parameters[name] - context.learning_rate * step for name, step in steps.items()}
        meta_loss = cross_entropy(objective.logits(images, at=ahead), targets)
        (slope,) = torch.autograd.grad(meta_loss, covariance, allow_unused=True)
        with self._with(covariance.detach() if slope is None else covariance.detach() - self.options.meta_rate * slope):
            return objective.gradients(objective())

    @contextmanager
    def _with(self, covariance: Tensor) -> Iterator[None]:
        self._learned = covariance
        try:
            yield
        finally:
            self._learned = None

    def _meta_set(self, context: Context) -> tuple[Tensor, Tensor]:
        """The step's held-out images [M, C, H, W], and their labels [M]; drawn on the CPU, where both are looked up."""
        targets, options = context.validation_targets, self.options
        drawn = balanced_draw(targets, context.num_classes, options.meta_batch_size, context.cpu_generator)
        images = context.images("val", drawn, augmented=options.augmented)
        return images, targets[drawn].to(context.device, non_blocking=True)
