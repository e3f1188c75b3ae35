"""LDAM's margins and its normalised classifier as pure functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_NO_DIRECTION = 1e-12


def ldam_margins(class_counts: Tensor, max_margin: float = 0.5) -> Tensor:
    r"""A margin for each class, larger the fewer images it has.

    Cao, Wei, Gaidon, Arechiga, Ma, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS
    2019, section 3.2 (margins proportional to n ** -1/4), with the constant chosen as in the authors' code, by the
    margin of the rarest class:

    .. math:: m_c = m_{\max} \left(\frac{\min_j n_j}{n_c}\right)^{1/4}.

    Args:
        class_counts: [C], training images a class.
        max_margin: margin of the rarest class, in units of a cosine, at least 0.

    Returns:
        [C] float32, in (0, `max_margin`]; computed in float64.

    Raises:
        ValueError: `max_margin` is negative, or a class has no training images; the message names it.
    """
    if not max_margin >= 0:
        raise ValueError(f"max_margin must be at least 0, not {max_margin}")
    if not bool((class_counts > 0).all()):
        empty = [c for c, count in enumerate(class_counts.tolist()) if not count > 0]
        shown = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        raise ValueError(f"no training images of class {shown}: a margin n ** -1/4 needs at least one")
    counts = class_counts.double()
    return (max_margin * (counts.min() / counts) ** 0.25).float()


def subtract_margin(logits: Tensor, targets: Tensor, margins: Tensor) -> Tensor:
    r"""Lower each sample's target logit by the margin of its class.

    Cao et al. 2019, section 3.2: the cross-entropy of these logits is the LDAM loss. With logits
    :math:`s \cos\theta_c` the margin that belongs to them is :math:`s \, m_c`.

    Args:
        logits: [N, C] float.
        targets: [N] int64 in [0, C).
        margins: [C], in units of the logits.

    Returns:
        [N, C]: :math:`z_{ic} - m_c [c = y_i]`; the other logits keep their bits.
    """
    drop = -margins.to(logits.dtype)[targets]
    return logits.scatter_add(1, targets[:, None], drop[:, None])


def unit_rows(x: Tensor) -> Tensor:
    """Rows of norm 1, in float32 or better.

    Args:
        x: [N, D] float.

    Returns:
        [N, D], float32 where `x` has a smaller dtype. A row without direction (norm below 1e-12) keeps its values, and
        passes gradients on as they are: they would otherwise be multiplied by 1e12.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    unit: Tensor = x / norm.masked_fill(norm < _NO_DIRECTION, 1.0)
    return unit


def cosine_logits(features: Tensor, weight: Tensor, scale: float = 30.0) -> Tensor:
    r"""Logits of the normalised classifier: :math:`s \cos(x_i, w_c)`.

    Cao et al. 2019, section 3.2, normalise the features and the rows of the last layer; the scale is that of their
    code, where it stands in the loss. Here the logits carry it, in training and in evaluation.

    Args:
        features: [N, D] float, of any norm.
        weight: [C, D] float, of any norm.
        scale: :math:`s`, above 0.

    Returns:
        [N, C] in [-`scale`, `scale`] up to rounding; 0 for features without direction.
    """
    return F.linear(unit_rows(features), scale * unit_rows(weight))
