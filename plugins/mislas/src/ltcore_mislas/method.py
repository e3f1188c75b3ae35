"""The method `label_aware_smoothing`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from ltcore import Context, Method, Options, hookimpl
from ltcore_mislas.functional import label_aware_smoothing_loss, smoothing_factors


class LabelAwareSmoothingOptions(Options):
    """Options of label-aware smoothing."""

    head: float = Field(default=0.4, ge=0.0, lt=1.0)
    """Smoothing of the largest class."""
    tail: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Smoothing of the smallest class."""
    form: Literal["concave", "linear", "convex"] = "concave"
    """How the smoothing goes from the one to the other with the number of images."""
    spread: Literal["others", "all"] = "others"
    """Which classes get the mass that a label gives away: the others, as printed, or all, as in the authors' code."""


class LabelAwareSmoothing(Method[LabelAwareSmoothingOptions]):
    """Label smoothing that grows with the class's number of images (MiSLAS), see `label_aware_smoothing_loss`."""

    interface = "1.0"
    factors: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Work out each class's smoothing, [C]."""
        options = self.options
        self.register_buffer(
            "factors", smoothing_factors(context.class_counts, options.head, options.tail, options.form)
        )

    @hookimpl
    def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Smoothed cross-entropy a sample, [N], from logits [N, C] and targets [N]."""
        if not (self.options.head or self.options.tail):
            return cross_entropy(logits, targets, reduction="none")
        return label_aware_smoothing_loss(logits, targets, self.factors, self.options.spread)
