"""The classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltcore_cosine_classifier.functional import cosine_logits, unit_rows


class CosineClassifier(nn.Module):
    """A last layer without bias whose logits are scaled cosines, see `cosine_logits`.

    The trained parameter is `directions`, [C, D], whose norms have no effect; where the scale is learned, `scale` too.
    `weight` and `bias` are what is applied to features of norm 1.

    Args:
        directions: [C, D], where training begins; they are normalised.
        scale: what the cosines are multiplied with.
        learn_scale: whether that is a parameter, too.
    """

    bias: None = None
    scale: float | nn.Parameter

    def __init__(self, directions: Tensor, scale: float, learn_scale: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale))) if learn_scale else scale
        self.directions = nn.Parameter(unit_rows(directions.detach()))

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, D] to [N, C], outside of autocast: bf16 would round a logit near 25 to an eighth."""
        with torch.autocast(pooled.device.type, enabled=False):
            return cosine_logits(pooled, self.directions, self.scale)

    @property
    def weight(self) -> Tensor:
        """[C, D], as applied to features of norm 1."""
        return self.scale * unit_rows(self.directions)
