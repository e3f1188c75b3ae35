"""Cosines as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_NO_DIRECTION = 1e-12


def unit_rows(x: Tensor) -> Tensor:
    """Rows of norm 1, in float32 or better.

    Args:
        x: [N, D] float.

    Returns:
        [N, D]; a row without direction (norm below 1e-12) keeps its values, and passes gradients on as they are.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    unit: Tensor = x / norm.masked_fill(norm < _NO_DIRECTION, 1.0)
    return unit


def cosine_logits(features: Tensor, directions: Tensor, scale: float | Tensor) -> Tensor:
    r"""Logits :math:`s \cos(x_i, w_c)`.

    Args:
        features: [N, D] float, of any norm.
        directions: [C, D] float, of any norm.
        scale: :math:`s`, above 0; 0-d where it is learned.

    Returns:
        [N, C] in [-`scale`, `scale`] up to rounding; 0 for features without direction.
    """
    return F.linear(unit_rows(features), scale * unit_rows(directions))
