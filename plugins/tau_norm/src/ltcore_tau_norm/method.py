"""The method `tau_norm`."""

from __future__ import annotations

from typing import Literal, cast

from pydantic import Field
from torch import Tensor, nn

from ltcore import Method, Options, hookimpl, scale_weights
from ltcore_tau_norm.functional import tau_norm_scale


class TauNormOptions(Options):
    """Options of tau-normalisation."""

    tau: float = Field(default=1.0, ge=0.0)
    """Strength: 0 changes no weight, 1 makes all weight norms 1. The paper searches between the two."""
    bias: Literal["keep", "drop"] = "keep"
    """What becomes of the bias, which the formula does not speak of: kept as it was trained, or dropped as the paper
    does."""


class TauNorm(Method[TauNormOptions]):
    """Tau-normalisation of the trained classifier (Kang et al. 2020), see `tau_normalize`."""

    interface = "1.0"

    @hookimpl
    def post_calibrate(self, classifier: nn.Module) -> nn.Module:
        """The classifier with logits ``x @ w'.T + b``, w' normalised; ``b`` kept or dropped."""
        weight = cast(Tensor, classifier.weight)
        return scale_weights(classifier, tau_norm_scale(weight.detach(), self.options.tau), self.options.bias == "keep")
