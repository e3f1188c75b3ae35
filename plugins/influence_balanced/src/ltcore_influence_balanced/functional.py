"""The influence-balanced loss as pure functions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

#: What the factors of the classes go by.
Weighting = Literal["inverse", "effective", "none"]


def influence(logits: Tensor, targets: Tensor, features: Tensor) -> Tensor:
    r"""How much a sample moves the last layer: the L1 norm of its gradient with respect to the weights.

    Park, Lim, Jeon, Choi, "Influence-Balanced Loss for Imbalanced Visual Classification", ICCV 2021, section 3: for
    cross-entropy and a linear layer,

    .. math:: I_i = \lVert p_i - y_i \rVert_1 \cdot \lVert h_i \rVert_1 = 2 (1 - p_{i, y_i}) \lVert h_i \rVert_1.

    Args:
        logits: [N, C] float.
        targets: [N] int64 in [0, C).
        features: [N, D] float, what the last layer was given.

    Returns:
        [N], at least 0, in the dtype of `logits`.
    """
    cross_entropy = F.cross_entropy(logits, targets, reduction="none")
    # 1 - p_y without the cancellation of 1 - exp(log p_y).
    return -2 * torch.expm1(-cross_entropy) * features.to(logits.dtype).abs().sum(1)


def class_factors(class_counts: Tensor, weighting: Weighting = "inverse") -> Tensor:
    r"""The factor :math:`\lambda_c` of each class, without alpha.

    Park et al. 2021 take the inverse of the counts; with the effective number of samples (Cui et al. 2019,
    beta 0.9999) it is what their tables call IB + CB.

    .. math:: \lambda_c \propto n_c^{-1} \quad\text{or}\quad \frac{1 - \beta}{1 - \beta^{n_c}}, \qquad
        \sum_c \lambda_c = C.

    Args:
        class_counts: [C], training images per class.
        weighting: ``inverse``, ``effective``, or ``none`` for ones.

    Returns:
        [C] float32; computed in float64.

    Raises:
        ValueError: a class has no training images; the message names it.
    """
    if not bool((class_counts > 0).all()):
        empty = [c for c, count in enumerate(class_counts.tolist()) if not count > 0]
        shown = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        raise ValueError(f"no training images of class {shown}: a weight for it needs at least one")
    counts = class_counts.double()
    if weighting == "none":
        return torch.ones_like(counts, dtype=torch.float32)
    factors = 1 / counts if weighting == "inverse" else -1 / torch.expm1(counts * math.log(0.9999))
    return (factors * (len(factors) / factors.sum())).float()


def influence_balanced_loss(
    logits: Tensor,
    targets: Tensor,
    features: Tensor,
    factors: Tensor,
    alpha: float = 1000.0,
    epsilon: float = 1e-3,
    gamma: float = 0.0,
    constant: bool = False,
) -> Tensor:
    r"""Cross-entropy over the sample's influence.

    Park et al. 2021, section 3, with the small number that the authors' code adds below:

    .. math:: \ell_i = \frac{\alpha}{I_i + \epsilon} \, (1 - q_i)^\gamma \, \lambda_{y_i} \, (-\log p_{i, y_i}),
        \qquad q_i = p_{i, y_i}^{\lambda_{y_i}}.

    With gamma 0 it is the paper's IB, else its IB + Focal, as the code has it: :math:`q` is the exponential of the
    weighted cross-entropy.

    Args:
        logits: [N, C] float.
        targets: [N] int64 in [0, C).
        features: [N, D] float, what the last layer was given.
        factors: [C], from `class_factors`.
        alpha: above 0.
        epsilon: above 0.
        gamma: focusing exponent, at least 0.
        constant: whether the influence is a constant to the gradient; in the authors' code it is not.

    Returns:
        One loss value per sample, [N].
    """
    weighted = factors.to(logits.dtype)[targets] * F.cross_entropy(logits, targets, reduction="none")
    moved = influence(logits, targets, features)
    if constant:
        moved = moved.detach()
    if gamma > 0:
        # The power's derivative at 0 may be infinite, where the loss itself is 0.
        weighted = weighted * (-torch.expm1(-weighted)).clamp(min=1e-7) ** gamma
    return alpha / (moved + epsilon) * weighted
