"""What SADE and BalPoE add to the training logits of each expert, as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor


def log_prior(class_counts: Tensor) -> Tensor:
    """``log p_c``, where ``p_c = n_c / sum(n)`` is the share of a class in the training images.

    Args:
        class_counts: [C], training images per class.

    Returns:
        [C] float64, in nats, at most 0.

    Raises:
        ValueError: a class has no training images, so that its logarithm is not finite; the message names it.
    """
    if not bool((class_counts > 0).all()):
        empty = [c for c, count in enumerate(class_counts.tolist()) if not count > 0]
        shown = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        raise ValueError(f"no training images of class {shown}, and the logarithm of its share needs at least one")
    counts = class_counts.double()
    return counts.log() - counts.sum().log()


def reversed_log_prior(class_counts: Tensor) -> Tensor:
    """``log p'_c``: the same shares, given out the other way round, so that the rarest class has the largest.

    Zhang, Hooi, Hong, Feng, "Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed
    Recognition", NeurIPS 2022, the distribution of the inverse softmax loss. Classes that are as frequent as each other
    take their places in label order.

    Args:
        class_counts: [C], training images per class.

    Returns:
        [C] float64, in nats.

    Raises:
        ValueError: as `log_prior`.
    """
    shares, order = log_prior(class_counts).sort(stable=True)
    return torch.empty_like(shares).index_copy_(0, order, shares.flip(0))


def sade_shifts(class_counts: Tensor, experts: int, strength: float = 2.0) -> Tensor:
    r"""What SADE adds to each expert's logits in training.

    Zhang et al. 2022, the expertise-guided losses of three experts:

    .. math:: s_1 = 0, \quad s_2 = \log p, \quad s_3 = \log p - \lambda \log p'.

    The cross-entropy of the shifted logits is the softmax loss, the balanced softmax loss and the inverse softmax loss.
    With another number the first is the softmax loss, and the others' strengths go from 0 to :math:`\lambda` in equal
    steps; of two experts the second has :math:`\lambda`.

    Args:
        class_counts: [C], training images per class.
        experts: E, at least 2.
        strength: :math:`\lambda`.

    Returns:
        [E, C] float32, in nats; computed in float64.

    Raises:
        ValueError: as `log_prior`.
    """
    prior, inverse = log_prior(class_counts), reversed_log_prior(class_counts)
    strengths = _steps(0.0, strength, experts - 1) if experts > 2 else [strength]
    return torch.stack([torch.zeros_like(prior), *(prior - each * inverse for each in strengths)]).float()


def balpoe_shifts(class_counts: Tensor, experts: int, lowest: float = 0.0, highest: float = 2.0) -> Tensor:
    r"""What BalPoE adds to each expert's logits in training: :math:`\tau_k \log p`, the strengths in equal steps.

    Sanchez Aimar, Jonnarth, Felsberg, Kuhlmann, "Balanced Product of Calibrated Experts for Long-Tailed Recognition",
    CVPR 2023: each expert has the logit-adjusted loss of a strength of its own. An expert that was trained so predicts
    for class shares in proportion to :math:`p^{1 - \tau_k}`, and the mean of the experts' logits for :math:`p` to the
    mean of these powers: for balanced classes where the mean of :math:`\tau_k` is 1.

    Args:
        class_counts: [C], training images per class.
        experts: E; a single one has the mean of both strengths.
        lowest: strength of the first expert.
        highest: strength of the last.

    Returns:
        [E, C] float32, in nats; computed in float64.

    Raises:
        ValueError: as `log_prior`.
    """
    prior = log_prior(class_counts)
    strengths = prior.new_tensor(_steps(lowest, highest, experts))
    return (strengths[:, None] * prior).float()


def shifted_logits(logits: Tensor, shifts: Tensor, expert: Tensor) -> Tensor:
    """Training logits of rows, each with what its expert adds.

    Args:
        logits: [R, C] float.
        shifts: [E, C].
        expert: [R] int64, which expert a row is of.

    Returns:
        [R, C].
    """
    return logits + shifts[expert]


def _steps(first: float, last: float, number: int) -> list[float]:
    """So many values from the first to the last at equal distances; their mean where it is one."""
    if number == 1:
        return [(first + last) / 2]
    return [first + (last - first) * k / (number - 1) for k in range(number)]
