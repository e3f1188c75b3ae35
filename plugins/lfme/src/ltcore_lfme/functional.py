r"""LFME as pure functions.

L. Xiang, G. Ding, J. Han, "Learning From Multiple Experts: Self-paced Knowledge Distillation for Long-tailed
Classification", ECCV 2020; where it leaves a choice, the code that its authors published decides.

N rows, C classes, L groups of classes, each with an expert that was trained on its images alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: What a logit outside of a group becomes: a probability of 0 in float32, and finite, so that no loss makes NaN of it.
_FAR = -1e4


def class_groups(class_counts: Tensor, least: Sequence[int]) -> Tensor:
    """Which group each class is of, the most frequent classes first.

    Args:
        class_counts: [C], training images of each class.
        least: for each group but the last, the fewest images of its classes, descending.

    Returns:
        [C] int64, from 0 to len(least).

    Raises:
        ValueError: the numbers do not descend.
    """
    bounds = list(least)
    if bounds != sorted(set(bounds), reverse=True):
        raise ValueError(f"numbers of images should descend from each group to the next, not {bounds}")
    limits = torch.tensor(bounds, device=class_counts.device, dtype=torch.int64)
    return (class_counts[:, None] < limits).sum(1)


def group_logits(logits: Tensor, members: Tensor, targets: Tensor) -> Tensor:
    """Logits for a loss among some classes only: those of the others get a probability of 0.

    Args:
        logits: [N, C].
        members: [C] bool, the group's classes.
        targets: [N] int64. A row of a class outside of the group keeps its own logit, so that its loss is finite.

    Returns:
        [N, C]; no gradient reaches logits outside.
    """
    own = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return torch.where(members | own, logits, _FAR)


def distillation_loss(student: Tensor, expert: Tensor, members: Tensor, temperature: float = 2.0) -> Tensor:
    r"""How far the student is from an expert among the expert's classes, for each row.

    :math:`\mathrm{KL}\big(\mathrm{softmax}(t_G / T) \,\|\, \mathrm{softmax}(z_G / T)\big)` with both softmaxes over the
    group's classes G alone. As in the published code, it is not multiplied with :math:`T^2`.

    Args:
        student: [N, C], z.
        expert: [N, C], t; no gradient reaches it.
        members: [C] bool, G.
        temperature: T, above 0.

    Returns:
        [N] in nats, at least 0 up to rounding; 0 for a group of one class.
    """
    outside = ~members
    ours = F.log_softmax((student / temperature).masked_fill(outside, _FAR), dim=1)
    theirs = F.log_softmax((expert.detach() / temperature).masked_fill(outside, _FAR), dim=1)
    return (theirs.exp() * (theirs - ours)).masked_fill(outside, 0.0).sum(1)


def expert_weights(student: Tensor, expert: Tensor, threshold: float = 0.3) -> Tensor:
    r"""Self-paced expert selection: how much each expert still teaches.

    :math:`w = \min\big(1,\, \max(0,\, \frac{A_E - A_S}{A_E} \cdot \frac{1}{1 - \theta})\big)`: 1 until the student has
    :math:`\theta` of the expert's accuracy, then falling to 0 where it has reached all of it.

    Args:
        student: [L], held-out accuracy of the student in each group.
        expert: [L], that of the group's expert; NaN where no image is held out.
        threshold: theta, below 1.

    Returns:
        [L] in [0, 1]; 1 where nothing is known, 0 for an expert that is never right.
    """
    gap = (expert - student) / expert.clamp(min=torch.finfo(expert.dtype).tiny)
    return (gap / (1 - threshold)).clamp(0, 1).nan_to_num(1.0)


def group_accuracies(right: Tensor, targets: Tensor, groups: Tensor, number: int) -> Tensor:
    """Accuracy in each group of classes: the mean over those of its classes that have images.

    Args:
        right: [M] bool, whether each image is recognised.
        targets: [M] int64.
        groups: [C] int64.
        number: L.

    Returns:
        [L] float64; NaN for a group without an image.
    """
    classes = len(groups)
    images = torch.bincount(targets, minlength=classes)
    recalls = torch.bincount(targets, weights=right.double(), minlength=classes) / images.clamp(min=1)
    seen = images > 0
    sums = torch.bincount(groups[seen], weights=recalls[seen], minlength=number)
    return sums / torch.bincount(groups[seen], minlength=number)


def start_weights(confidences: Tensor, targets: Tensor, class_counts: Tensor, groups: Tensor) -> Tensor:
    r"""What each training image weighs where the curriculum begins.

    Within each class confidences are scaled linearly to :math:`[\theta_l, 1]`, where :math:`\theta_l` is the mean
    number of images of the classes of the rarest group over that of the class's own group. So images of the rarest
    group weigh 1 from the beginning, and the hardest ones of frequent classes least. Where all images of a class are
    as sure, each weighs 1 (the code divides 0 by 0 there).

    Args:
        confidences: [N], the probability that the expert of an image's group gives its class.
        targets: [N] int64.
        class_counts: [C], training images of each class.
        groups: [C] int64, see `class_groups`; the last group is the rarest, and none is empty.

    Returns:
        [N] in (0, 1].
    """
    counts = class_counts.to(confidences.dtype)
    sums = torch.zeros(int(groups.max()) + 1, dtype=counts.dtype, device=counts.device).index_add(0, groups, counts)
    means = sums / torch.bincount(groups)
    floor = (means[-1] / means).clamp(max=1)[groups]
    ends = torch.full((2, len(counts)), torch.inf, dtype=counts.dtype, device=counts.device)
    low = ends[0].scatter_reduce(0, targets, confidences, "amin")
    high = (-ends[1]).scatter_reduce(0, targets, confidences, "amax")
    span = (high - low)[targets]
    share = torch.where(span > 0, (confidences - low[targets]) / span, 1.0)
    return share * (1 - floor[targets]) + floor[targets]


def growing_weights(start: Tensor, share: float) -> Tensor:
    r"""Curriculum instance selection: :math:`v = w_0 + (1 - w_0)\, s`, from the starting weight on to 1 at s = 1.

    Args:
        start: [N], see `start_weights`.
        share: s, how much of the curriculum is done. Above 1 the code goes on, and hard images weigh more than easy
            ones.

    Returns:
        [N].
    """
    return start + (1 - start) * share
