"""The VS loss's logits as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_divisors(class_counts: Tensor, gamma: float = 0.3) -> Tensor:
    r"""What a class's logit is divided by, larger the fewer images it has.

    Kini, Paraskevas, Oymak, Thrampoulidis, "Label-Imbalanced and Group-Sensitive Classification under
    Overparameterization", NeurIPS 2021, has a factor :math:`\Delta_c` for each class; their experiments take
    a power of the counts:

    .. math:: 1 / \Delta_c = (n_{\max} / n_c)^\gamma.

    Args:
        class_counts: [C], training images per class.
        gamma: strength, at least 0; 0 gives ones.

    Returns:
        [C] float32, :math:`1 / \Delta_c`, at least 1, and 1 for the largest class; computed in float64.

    Raises:
        ValueError: `gamma` is negative, or a class has no training images; the message names it.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
    counts = _counts(class_counts)
    divisors: Tensor = (counts.max() / counts) ** gamma
    return divisors.float()


def log_shares(class_counts: Tensor) -> Tensor:
    r"""``log(n_c / sum(n))``: what is added to a class's logit, times tau.

    Args:
        class_counts: [C], training images per class.

    Returns:
        [C] float32, in nats, at most 0; computed in float64.

    Raises:
        ValueError: a class has no training images; the message names it.
    """
    counts = _counts(class_counts)
    return (counts.log() - counts.sum().log()).float()


def vs_logits(logits: Tensor, divisors: Tensor, shares: Tensor, tau: float = 1.0) -> Tensor:
    r"""Training logits :math:`\Delta_c z_c + \iota_c`; evaluation uses :math:`z_c`.

    Kini et al. 2021, the loss of several classes, with :math:`\iota_c = \tau \log(n_c / \sum_j n_j)` as in their
    experiments: the cross-entropy of these logits is the VS loss. With gamma 0 it is that of logit adjustment (Menon et
    al. 2021), with tau 0 that of CDT (Ye et al. 2020).

    Args:
        logits: [N, C] float.
        divisors: [C], from `scale_divisors`.
        shares: [C], from `log_shares`.
        tau: strength of what is added.

    Returns:
        [N, C].
    """
    return torch.add(logits / divisors, shares, alpha=tau)


def _counts(class_counts: Tensor) -> Tensor:
    if not bool((class_counts > 0).all()):
        empty = [c for c, count in enumerate(class_counts.tolist()) if not count > 0]
        shown = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        raise ValueError(f"no training images of class {shown}: a ratio of class counts needs at least one")
    return class_counts.double()
