"""MaxNorm as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor


def max_norm_radius(weight: Tensor, threshold: float = 0.1) -> Tensor:
    r"""The radius of the ball that the rows of a trained classifier are to stay in.

    Alshammari, Wang, Ramanan, Kong, "Long-Tailed Recognition via Weight Balancing", CVPR 2022, have a ball for each
    layer; their code sets it once, by the norms of the classes' weights where the second stage begins:

    .. math:: r = \min_c \lVert w_c \rVert + t \, (\max_c \lVert w_c \rVert - \min_c \lVert w_c \rVert).

    Args:
        weight: [C, D] float, one row per class.
        threshold: :math:`t`, in [0, 1]: 0 is the smallest norm, 1 the largest.

    Returns:
        0-d, in the dtype of `weight`.

    Raises:
        ValueError: `threshold` is out of range, or `weight` is not a matrix.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], not {threshold}")
    if weight.ndim != 2:
        raise ValueError(f"weight must be [C, D], not {list(weight.shape)}")
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1)
    return norms.min() + threshold * (norms.max() - norms.min())


def project_rows(weight: Tensor, radius: Tensor | float) -> Tensor:
    r"""The nearest matrix whose rows lie in a ball: :math:`w_c \min(1, r / \lVert w_c \rVert)`.

    Alshammari et al. 2022, MaxNorm by projected gradient descent.

    Args:
        weight: [C, D] float, one row per class.
        radius: :math:`r`, at least 0.

    Returns:
        [C, D]; rows within the ball keep their bits.
    """
    norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    return torch.where(norms > radius, weight * (radius / norms), weight)
