"""The methods `temperature` and `vector_scaling`."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ltcore import CalibratedClassifier, Context, DataError, Method, Options, hookimpl
from ltcore_scaling.functional import class_shares, fit_temperature, fit_vector

_ROWS = 4096


class TemperatureOptions(Options):
    """Options of temperature scaling."""

    classes: Literal["as_they_are", "balanced"] = "as_they_are"
    """Whether each held-out image counts alike, or each class. What images the probabilities shall be right for
    decides: `data.holdout` holds as many images of each class out, which is balanced already."""


class VectorScalingOptions(TemperatureOptions):
    """Options of vector scaling."""

    l2: float = Field(default=1e-3, ge=0.0)
    """How much leaving the logits as they are is preferred: the weight of the mean square of `scale - 1` and `shift`.
    With 0, as in the paper, every class needs a held-out image."""


class Temperature(Method[TemperatureOptions]):
    """Temperature scaling (Guo et al. 2017), fitted to held-out images; predictions stay the same."""

    interface = "1.0"
    balances = False

    @property
    def requires(self) -> frozenset[str]:
        """Held-out images, which nothing was trained on."""
        return frozenset({"validation"})

    @hookimpl
    def post_calibrate(self, classifier: nn.Module, context: Context) -> nn.Module:
        """The classifier with logits over the temperature that fits the held-out images."""
        logits, targets, weights = _held_out(classifier, context, self.options.classes == "balanced")
        return CalibratedClassifier(classifier, scale=1 / fit_temperature(logits, targets, weights))


class VectorScaling(Method[VectorScalingOptions]):
    """Vector scaling (Guo et al. 2017), fitted to held-out images: a factor and a summand for each class."""

    interface = "1.0"

    @property
    def requires(self) -> frozenset[str]:
        """Held-out images, which nothing was trained on."""
        return frozenset({"validation"})

    @hookimpl
    def post_calibrate(self, classifier: nn.Module, context: Context) -> nn.Module:
        """The classifier with the logits scaled and shifted that fit the held-out images.

        Raises:
            DataError: `l2` is 0, and a class has no held-out image.
        """
        logits, targets, weights = _held_out(classifier, context, self.options.classes == "balanced")
        absent = (torch.bincount(targets, minlength=context.num_classes) == 0).nonzero().flatten().tolist()
        if absent and self.options.l2 == 0:
            raise DataError(
                f"method '{context.name}': {len(absent)} classes have no held-out image, first class {absent[0]}, and "
                "with l2: 0 they would never be predicted; set l2 above 0, hold images of them out, or use temperature"
            )
        scale, shift = fit_vector(logits, targets, weights, self.options.l2)
        return CalibratedClassifier(classifier, scale=scale, shift=shift)


def _held_out(classifier: nn.Module, context: Context, balanced: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits [M, C] of the held-out images, their labels [M] and weights [M] (None: all weigh alike), on the CPU."""
    pooled = context.validation_features()
    logits = torch.cat([classifier(rows).float() for rows in torch.split(pooled, _ROWS)]).cpu()
    targets = context.validation_targets.cpu()
    return logits, targets, class_shares(targets, context.num_classes) if balanced else None
