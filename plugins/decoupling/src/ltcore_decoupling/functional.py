"""Learnable weight scaling and the nearest class mean as pure functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scaled_logits(logits: Tensor, scale: Tensor, kept_bias: Tensor | None = None) -> Tensor:
    r"""Logits of a classifier that is scaled class by class.

    Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis, "Decoupling Representation and Classifier for Long-Tailed
    Recognition", ICLR 2020, section 4, learnable weight scaling, is printed for weights alone:
    :math:`\tilde w_c = f_c \, w_c`. Its authors' code, and that of MiSLAS (Zhong et al. 2021), multiplies the logit,
    and with it the bias:

    .. math:: \tilde z_c = f_c (w_c^\top x + b_c); \qquad \text{with a kept bias} \quad
        \tilde z_c = f_c \, w_c^\top x + b_c.

    Args:
        logits: [N, C] float, :math:`w_c^\top x + b_c`.
        scale: [C], :math:`f_c`.
        kept_bias: [C], :math:`b_c`, where it is to stay as it is; None where it is scaled, or where there is none.

    Returns:
        [N, C]; at scale 1 the values of `logits`, bit for bit.
    """
    if kept_bias is None:
        return scale * logits
    # Not scale * (z - b) + b, which at scale 1 is z only up to rounding.
    return logits + (scale - 1) * (logits - kept_bias)


def class_mean_directions(features: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    r"""The mean of each class's L2-normalised features, normalised again.

    Kang et al. 2020, section 4, nearest class mean: for unit features x and unit means m, the smallest distance
    :math:`\|x - m_c\|^2 = 2 - 2 x^\top m_c` and the largest cosine are the same class.

    Args:
        features: [N, D] float.
        targets: [N] int64 in [0, C).
        num_classes: C.

    Returns:
        [C, D] in the dtype of `features`, rows of norm 1; computed in float64. A class whose features cancel out has
        zeros.

    Raises:
        ValueError: a class has no features; the message names it.
    """
    counts = torch.bincount(targets, minlength=num_classes)
    if not bool((counts > 0).all()):
        empty = [c for c, count in enumerate(counts.tolist()) if not count]
        shown = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        raise ValueError(f"no training images of class {shown}: a mean needs at least one")
    unit = F.normalize(features.double())
    sums = unit.new_zeros(num_classes, unit.shape[1]).index_add_(0, targets, unit)
    return F.normalize(sums / counts[:, None]).to(features.dtype)


def cosine_logits(features: Tensor, weight: Tensor) -> Tensor:
    """``w_c . x / ||x||``: scaled cosines, where the rows of the weight share one norm.

    Args:
        features: [N, D] float.
        weight: [C, D] float.

    Returns:
        [N, C]; zeros for a row of zeros.
    """
    return F.linear(F.normalize(features), weight)
