"""Tau-normalisation as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor


def tau_norm_scale(weight: Tensor, tau: float = 1.0) -> Tensor:
    """``||w_c|| ** -tau``, what tau-normalisation multiplies the weights of a class with.

    Args:
        weight: [C, D] float, one row a class.
        tau: strength, at least 0; 0 gives ones.

    Returns:
        [C], finite for tau up to 1. A row without direction (its norm is zero, or too small to be told from it) has
        scale 1.

    Raises:
        ValueError: `tau` is negative, or `weight` is not a matrix.
    """
    if not tau >= 0:
        raise ValueError(f"tau must be at least 0, not {tau}")
    if weight.ndim != 2:
        raise ValueError(f"weight must be [C, D], not {list(weight.shape)}")
    norm: Tensor = torch.linalg.vector_norm(weight, dim=1)
    scale: Tensor = norm.masked_fill(norm < torch.finfo(norm.dtype).tiny, 1.0) ** -tau
    return scale


def tau_normalize(weight: Tensor, tau: float = 1.0) -> Tensor:
    """``w_c / ||w_c|| ** tau``.

    Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis, "Decoupling Representation and Classifier for Long-Tailed
    Recognition", ICLR 2020, section 4, the tau-normalised classifier. After plain training a frequent class has a
    larger norm than a rare one; tau 0 leaves that as it is, tau 1 makes all norms 1.

    Args:
        weight: [C, D] float, one row a class.
        tau: strength, at least 0.

    Returns:
        [C, D]; a row of zeros stays zeros.

    Raises:
        ValueError: as `tau_norm_scale`.
    """
    return weight * tau_norm_scale(weight, tau)[:, None]
