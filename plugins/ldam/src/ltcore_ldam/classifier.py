"""The classifier that LDAM builds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltcore_ldam.functional import cosine_logits, unit_rows


class NormalisedClassifier(nn.Module):
    """A last layer without bias whose logits are scaled cosines, see `cosine_logits`.

    The trained parameter is `raw_weight`, [C, D]; its norms have no effect. `weight` and `bias` are what is applied to
    features of norm 1. Rows start in random directions: uniform in [-1, 1], then normalised.

    Args:
        feature_dim: D.
        num_classes: C.
        scale: what the cosines are multiplied with.
    """

    bias: None = None

    def __init__(self, feature_dim: int, num_classes: int, scale: float = 30.0) -> None:
        super().__init__()
        self.scale = scale
        self.raw_weight = nn.Parameter(unit_rows(torch.empty(num_classes, feature_dim).uniform_(-1, 1)))

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, D] to [N, C], outside of autocast: bf16 would round a logit near 30 to an eighth."""
        with torch.autocast(pooled.device.type, enabled=False):
            return cosine_logits(pooled, self.raw_weight, self.scale)

    @property
    def weight(self) -> Tensor:
        """[C, D], as applied to features of norm 1: every row has the norm `scale`."""
        return self.scale * unit_rows(self.raw_weight)
