"""Logit adjustment and balanced softmax as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor


def class_log_counts(class_counts: Tensor) -> Tensor:
    """``log n_c``.

    Args:
        class_counts: [C], training images a class.

    Returns:
        [C] float32, in nats; computed in float64.

    Raises:
        ValueError: a class has no training images, so that its logarithm is not finite; the message names it.
    """
    if not bool((class_counts > 0).all()):
        empty = [c for c, count in enumerate(class_counts.tolist()) if not count > 0]
        shown = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        raise ValueError(f"no training images of class {shown}: the logarithm of a class frequency needs at least one")
    return class_counts.double().log().float()


def class_log_prior(class_counts: Tensor) -> Tensor:
    """``log p_c``, where ``p_c = n_c / sum(n)`` is the share of a class in the training images.

    Args:
        class_counts: [C], training images a class.

    Returns:
        [C] float32, in nats, at most 0; computed in float64.

    Raises:
        ValueError: as `class_log_counts`.
    """
    class_log_counts(class_counts)
    counts = class_counts.double()
    return (counts.log() - counts.sum().log()).float()


def adjusted_logits(logits: Tensor, log_prior: Tensor, tau: float = 1.0) -> Tensor:
    """Training logits ``z + tau * log p``, so that a rare class must win by a margin.

    Menon, Jayasumana, Rawat, Jain, Veit, Kumar, "Long-tail learning via logit adjustment", ICLR 2021, equation 10:
    the cross-entropy of these logits is the paper's logit-adjusted loss. Evaluation uses ``z``.

    Args:
        logits: [N, C] float.
        log_prior: [C], from `class_log_prior`.
        tau: strength; 0 returns `logits` itself.

    Returns:
        [N, C].
    """
    return logits if tau == 0 else torch.add(logits, log_prior, alpha=tau)


def post_hoc_shift(log_prior: Tensor, tau: float = 1.0) -> Tensor:
    """``-tau * log p``, to be added to the logits of a model trained without adjustment.

    Menon et al. 2021, equation 9: the prediction is the class with the largest ``z - tau * log p``.

    Args:
        log_prior: [C], from `class_log_prior`.
        tau: strength.

    Returns:
        [C].
    """
    return -tau * log_prior


def balanced_logits(logits: Tensor, log_counts: Tensor) -> Tensor:
    """Training logits ``z + log n`` of the balanced softmax.

    Ren, Yu, Sheng, Ma, Zhao, Yi, Li, "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020,
    theorem 1 and the loss that follows from it. They differ from `adjusted_logits` at tau 1 by ``log sum(n)``, the
    same for every class, which no softmax sees.

    Args:
        logits: [N, C] float.
        log_counts: [C], from `class_log_counts`.

    Returns:
        [N, C].
    """
    return logits + log_counts
