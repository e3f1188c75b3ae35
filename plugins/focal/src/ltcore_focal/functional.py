"""Focal loss as a pure function."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    r"""Cross-entropy, scaled down where the target is already probable.

    Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017, equation 4, read on the
    softmax over C classes instead of on one sigmoid:

    .. math:: \ell_i = -(1 - p_i)^\gamma \log p_i, \qquad p_i = \mathrm{softmax}(z_i)_{y_i}.

    Class weights (the paper's :math:`\alpha`) are not a part of it: they multiply the value and never enter
    :math:`p_i`, so the hook `class_weights` supplies them.

    Args:
        logits: [N, C] float, not normalised.
        targets: [N] int64 in [0, C).
        gamma: focusing exponent, at least 0; 0 is cross-entropy, bit for bit.

    Returns:
        One loss value a sample in nats, [N], at least 0; values and gradients are finite wherever those of
        cross-entropy are.

    Raises:
        ValueError: `gamma` is negative, or `logits` is not a matrix.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
    if logits.ndim != 2:
        raise ValueError(f"logits must be [N, C], not {list(logits.shape)}")
    cross_entropy = F.cross_entropy(logits, targets, reduction="none")  # -log p_y
    if gamma == 0:
        return cross_entropy
    # At p_y = 1 the power's derivative is 0 ** (gamma - 1), infinite for gamma < 1, and infinity times zero is NaN.
    # The loss behaves like (-log p_y) ** (1 + gamma) there: value and gradient are zero for every gamma > 0. So these
    # rows take a harmless path through the power, and a zero afterwards; no other row is touched.
    certain = cross_entropy <= 0
    surprise = cross_entropy.masked_fill(certain, 1.0)
    # 1 - p_y without the cancellation of 1 - exp(log p_y). Beyond 100 nats it is 1 in every dtype and its derivative is
    # lost in rounding, but would be computed as infinity times zero where the loss is near the dtype's largest number.
    miss = -torch.expm1(-surprise.clamp(max=100.0))
    return (miss**gamma * surprise).masked_fill(certain, 0.0)
