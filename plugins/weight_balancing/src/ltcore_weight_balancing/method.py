"""The method `max_norm`."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ltcore import Context, Method, Options, RecipeError, hookimpl
from ltcore_weight_balancing.functional import max_norm_radius, project_rows

#: Matrices of one classifier with a row per class; a linear one has one.
_MATRICES = 4


class MaxNormOptions(Options):
    """Options of MaxNorm."""

    threshold: float = Field(default=0.1, ge=0.0, le=1.0)
    """Where the radius lies, as the stage begins: at the smallest (0) to the largest (1) norm of a class's weights."""


class MaxNorm(Method[MaxNormOptions]):
    """Weights of the classifier that are put back into a ball (Alshammari et al. 2022), see `project_rows`."""

    interface = "1.1"
    requires = frozenset({"class_weights"})
    radii: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make room for the radii; of experts for each."""
        self.register_buffer("radii", torch.zeros(_MATRICES * context.model.backbone.experts))

    @hookimpl
    @torch.no_grad()
    def on_stage_start(self, context: Context) -> None:
        """Take the radii from the classifier as it begins.

        Raises:
            RecipeError: it trains no weights of classes, or too many matrices of them.
        """
        weights = self._weights(context)
        if not 0 < len(weights) <= len(self.radii):
            raise RecipeError(
                f"method '{context.name}' bounds a classifier's weights, one row per class; "
                f"{type(context.model.classifier).__name__} trains {len(weights) or 'no'} such matrices in stage "
                f"'{context.stage}'. List the method in a stage that trains a linear classifier"
            )
        self.radii.zero_()
        for place, weight in enumerate(weights):
            self.radii[place] = max_norm_radius(weight, self.options.threshold)

    @hookimpl
    def after_step(self, context: Context) -> None:
        """Put the rows that have left their ball back onto it."""
        for weight, radius in zip(self._weights(context), self.radii, strict=False):
            weight.copy_(project_rows(weight, radius))

    @staticmethod
    def _weights(context: Context) -> list[Tensor]:
        """The classifier's matrices that train, and have a row per class and a column per feature."""
        shape = (context.num_classes, context.model.backbone.feature_dim)
        return [each for each in context.model.classifier.parameters() if each.requires_grad and each.shape == shape]
