"""Dropout and Gaussian noise as pure functions.

Both are what the STG paper compares itself with (Sample-specific and Context-aware Augmentation for Long Tail Image
Classification, under review at ICLR 2022, table 7).
"""

from __future__ import annotations

import torch
from torch import Tensor


def dropped(features: Tensor, uniform: Tensor, p: float) -> Tensor:
    """Channels set to zero with probability p, the others divided by 1 - p, so that the expectation stays.

    N. Srivastava et al., Dropout, JMLR 2014, sec. 10 (scaled while training rather than at test time).

    Args:
        features: [N, D].
        uniform: [N, D] drawn from U[0, 1).
        p: in [0, 1).

    Returns:
        [N, D].
    """
    return torch.where(uniform < p, 0, features / (1 - p))


def noisy(features: Tensor, noise: Tensor, std: float) -> Tensor:
    """Features [N, D] plus `std` (in the features' unit) times standard normal noise [N, D]."""
    return features + std * noise
