"""RIDE's losses and its routing as pure functions.

X. Wang, L. Lian, Z. Miao, Z. Liu, S. X. Yu: Long-tailed Recognition by Routing Diverse Distribution-Aware Experts, ICLR
2021. Where the paper and the authors' code (frank-xwang/RIDE-LongTailRecognition) differ, the code is followed.

N images, E experts, C classes. Experts come in an order, in which the routing calls them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def class_temperatures(class_counts: Tensor, ratio: float) -> Tensor:
    r"""What each class's logits are divided by: the less, the fewer images it has.

    .. math:: v_c = C \pi_c r + 1 - r, \qquad T_c = v_c / \max_j v_j,

    with :math:`\pi_c` the class's share of the images (the paper's section 3; the division by the largest stands in the
    code only).

    Args:
        class_counts: [C], training images a class.
        ratio: r, in [0, 1); 0 gives every class the temperature 1.

    Returns:
        [C] float32 in (0, 1]; computed in float64.
    """
    shares = class_counts.double() / class_counts.sum()
    values = len(shares) * shares * ratio + 1 - ratio
    return (values / values.max()).float()


def diversity_loss(logits: Tensor, temperatures: Tensor | float) -> Tensor:
    r"""Minus how far the experts are from their mean: minimising it drives them apart.

    .. math:: -\bar T^2 \sum_k \frac{1}{N} \sum_i KL(\bar p_i \,\|\, p_{ik}), \qquad p_{ik} = softmax(z_{ik} / T).

    :math:`\bar p` is the softmax of the mean logits, and carries no gradient, as in the code; the paper compares each
    expert with the others. :math:`\bar T` is the mean of the temperatures.

    Args:
        logits: [N, E, C] float.
        temperatures: [C], or one for all classes.

    Returns:
        0-d, at most 0; the sum over the experts of means over the images.
    """
    mean_temperature = temperatures.mean() if isinstance(temperatures, Tensor) else temperatures
    own = F.log_softmax(logits / temperatures, dim=2)
    with torch.no_grad():
        common = F.log_softmax(logits.mean(1, keepdim=True) / temperatures, dim=2)
    divergence = (common.exp() * (common - own)).sum(2).mean(0)
    return -(mean_temperature**2) * divergence.sum()


def running_means(logits: Tensor) -> Tensor:
    """Mean logits of the experts up to each one, [N, E, C] to [N, E, C]."""
    numbers = torch.arange(1, logits.shape[1] + 1, device=logits.device, dtype=logits.dtype)
    return logits.cumsum(1) / numbers[:, None]


def gate_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether asking more experts helps: those so far are wrong together, and some more of them would be right.

    Args:
        logits: [N, E, C].
        targets: [N] int64.

    Returns:
        [N, E - 1] bool; column k is for the gate behind expert k.
    """
    right = running_means(logits).argmax(2) == targets[:, None]
    later = right[:, 1:].flip(1).cummax(1).values.flip(1)
    return ~right[:, :-1] & later


def gate_loss(scores: Tensor, wanted: Tensor, positive_weight: float) -> Tensor:
    """Binary cross-entropy of the gates, 0-d: the mean over images and gates.

    Args:
        scores: [N, E - 1] float, logits of the gates.
        wanted: [N, E - 1] bool.
        positive_weight: what a positive target counts for.
    """
    weight = scores.new_full((), positive_weight)
    return F.binary_cross_entropy_with_logits(scores, wanted.to(scores.dtype), pos_weight=weight)


def used_experts(scores: Tensor) -> Tensor:
    """Which experts an image asks: the first, and each next one while the gates before it say yes (sigmoid above 0.5).

    [N, E - 1] logits of the gates to [N, E] bool.
    """
    refused = (scores <= 0).to(scores.dtype).cumsum(1)  # ONNX knows no cumulative product
    return torch.cat([torch.zeros_like(scores[:, :1]), refused], 1) == 0


def mean_of_used(logits: Tensor, used: Tensor) -> Tensor:
    """Mean logits of the experts that an image asks, [N, E, C] and [N, E] bool to [N, C]."""
    share = used.to(logits.dtype)
    return (logits * share[:, :, None]).sum(1) / share.sum(1, keepdim=True)
