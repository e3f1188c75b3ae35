"""The method `focal`."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ltcore import Method, Options, hookimpl
from ltcore_focal.functional import focal_loss


class FocalOptions(Options):
    """Options of the focal loss."""

    gamma: float = Field(default=2.0, ge=0.0)
    """Focusing exponent: how fast a sample loses weight as its target grows probable. 0 is cross-entropy."""


class Focal(Method[FocalOptions]):
    """Focal loss (Lin et al. 2017), see `focal_loss`."""

    interface = "1.0"

    @hookimpl
    def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Focal loss a sample, [N], from logits [N, C] and targets [N]."""
        return focal_loss(logits, targets, self.options.gamma)
