"""The method `gcl`."""

from __future__ import annotations

from typing import ClassVar

from ltcore_cosine_classifier import CosineClassifier
from pydantic import Field
from torch import Tensor, nn

from ltcore import Context, DataError, ExpertClassifiers, Method, Options, RecipeError, hookimpl
from ltcore_gcl.functional import cloud_sizes, clouded_logits, draw_noise, focal_factor


class GCLOptions(Options):
    """Options of Gaussian clouded logits; the defaults are those of the first stage on CIFAR."""

    cloud: float = Field(default=0.5, ge=0.0)
    """Size of the rarest class's cloud, in units of a cosine; 1 on Places-LT. 0 is none."""
    margin: float = Field(default=0.0, ge=0.0)
    """What the target's cosine is lowered by; 0.1 in the second stage."""
    scale: float | None = Field(default=None, gt=0.0)
    """What the loss multiplies cosines with; None for the classifier's scale. 30, in the second stage 20."""
    gamma: float = Field(default=0.0, ge=0.0)
    """Exponent of a focal factor through which no gradient passes; 1 in the second stage."""


class GCL(Method[GCLOptions]):
    """Gaussian clouded logits (Li et al. 2022), see `clouded_logits`."""

    interface = "1.1"
    requires = frozenset({"cosine_classifier"})
    checked_with: ClassVar = {"margin": 0.1, "scale": 20.0, "gamma": 1.0}
    sizes: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep the relative sizes of the clouds, [C], in a buffer.

        Raises:
            DataError: a class has no training images.
        """
        try:
            self.register_buffer("sizes", cloud_sizes(context.class_counts))
        except ValueError as error:
            raise DataError(f"method '{context.name}': {error}") from error

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        """Look at the stage's classifier, before the first step.

        Raises:
            RecipeError: it is not of `cosine_classifier`, or learns its scale.
        """
        _scale(context.model.classifier)

    @hookimpl
    def adjust_logits(self, logits: Tensor, targets: Tensor, context: Context) -> Tensor:
        """Cosines that are lowered by their clouds and the margin, times the scale, [N, C]."""
        options, own = self.options, _scale(context.model.classifier)
        scale = own if options.scale is None else options.scale
        noise = draw_noise(logits, context.generator)
        clouds = scale * options.cloud * self.sizes
        return clouded_logits(logits * (scale / own), targets, noise, clouds, scale * options.margin)

    @hookimpl
    def sample_weights(self, values: Tensor) -> Tensor | None:
        """The focal factor of each row, [N]; None where `gamma` is 0."""
        return focal_factor(values, self.options.gamma) if self.options.gamma > 0 else None


def _scale(classifier: nn.Module) -> float:
    """What a classifier multiplies cosines with; experts have the same.

    Raises:
        RecipeError: it is not of `cosine_classifier`, or learns its scale.
    """
    if isinstance(classifier, ExpertClassifiers):
        classifier = classifier.experts[0]
    if not isinstance(classifier, CosineClassifier):
        raise RecipeError("works on the classifier of cosine_classifier, and the stage has another; list it there too")
    if isinstance(classifier.scale, nn.Parameter):
        raise RecipeError("gives the loss a scale of its own, so that none is learned; take learn_scale out")
    return classifier.scale
