"""STG as pure functions: the targets of its regression, the dictionary's order, the loss, the augmentation.

Anonymous authors: Sample-specific and Context-aware Augmentation for Long Tail Image Classification, under review at
ICLR 2022.

Letters: B rows of a batch, D feature channels, P rows of a pool, m places of the dictionary, C classes. No function
loops over rows or waits for the device. Randomness comes in as numbers that were drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor


def transformation_statistics(
    anchors: Tensor, labels: Tensor, sources: Tensor, pool: Tensor, pool_labels: Tensor, pool_sources: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of what leads from each anchor to the other samples of its class (eq. 1).

    ``mu_i = mean_j(a_j - a_i)``, ``var_i = mean_j((a_j - a_i - mu_i) ** 2)``, over the pool's rows j with the label of
    anchor i that come from another image. The variance is that of the features a_j, which no shift changes.

    Args:
        anchors: [B, D] float32 or float64.
        labels: [B] int64; an anchor with a negative label has no partners.
        sources: [B] int64, the image that each anchor comes from.
        pool: [P, D], among its rows may be the anchors themselves.
        pool_labels: [P] int64; a negative one marks a row that is nobody's partner.
        pool_sources: [P] int64.

    Returns:
        Means [B, D], variances [B, D] (both 0 where there is no partner) and the number of partners [B].
    """
    dtype = anchors.dtype
    partner = (labels[:, None] == pool_labels) & (labels >= 0)[:, None] & (sources[:, None] != pool_sources)
    number = partner.sum(1)
    share = partner.to(dtype) / number.clamp(min=1)[:, None]
    # Around the means of their classes, so that the squares lose no digits.
    alike = (pool_labels[:, None] == pool_labels).to(dtype)
    centred = pool - alike @ pool / alike.sum(1, keepdim=True)
    offset = share @ centred
    variance = (share @ centred.square() - offset.square()).clamp(min=0)
    mean = torch.where((number > 0)[:, None], share @ pool - anchors, 0)
    return mean, variance, number


def smoothed(previous: Tensor, current: Tensor, seen: Tensor, momentum: float) -> Tensor:
    """Statistics over the visits to a sample: ``momentum * previous + (1 - momentum) * current`` (end of sec. 3.3).

    Args:
        previous: [B, D] of the visits before.
        current: [B, D] of this one.
        seen: [B] bool; False at the first visit, which takes `current` as it is.
        momentum: in [0, 1).

    Returns:
        [B, D].
    """
    return torch.where(seen[:, None], momentum * previous + (1 - momentum) * current, current)


def places_to_fill(wanted: Tensor, pointer: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """First in, first out: which row of a batch each place of the dictionary takes (fig. 2c).

    The wanted rows go, in their order, to the places from `pointer` on, around the end. Where they are more than
    there are places, the last ones stay.

    Args:
        wanted: [B] bool.
        pointer: 0-d int64 in [0, size), the place that was filled longest ago.
        size: m, at least 1.

    Returns:
        For each place, whether it is filled [m] bool and with which row [m] int64; and the next pointer.
    """
    number = wanted.sum()
    rows = torch.argsort((~wanted).to(torch.uint8), stable=True)  # the wanted ones first
    rank = (torch.arange(size, device=wanted.device) - pointer) % size
    filled = rank < number
    last = rank + size * torch.div(number - 1 - rank, size, rounding_mode="floor").clamp(min=0)
    return filled, rows[torch.where(filled, last, 0)], (pointer + number) % size


def cycled(wanted: Tensor) -> Tensor:
    """Row numbers [B] that go through the wanted rows [B] in their order, again and again; any row where none is."""
    rows = torch.argsort((~wanted).to(torch.uint8), stable=True)
    return rows[torch.arange(len(wanted), device=wanted.device) % wanted.sum().clamp(min=1)]


def last_alike(keys: Tensor) -> Tensor:
    """For each row the number [B] of the last row with the same key; keys [B] int64."""
    numbers = torch.arange(len(keys), device=keys.device)
    return torch.where(keys[:, None] == keys, numbers, -1).amax(1)


def statistics_loss(mean: Tensor, variance: Tensor, true_mean: Tensor, true_std: Tensor, counted: Tensor) -> Tensor:
    """Mean squared error of the mean plus that of the standard deviation, over counted rows and channels.

    The paper asks for a regression and does not name the loss. Deviations rather than variances, so that both terms
    have the features' unit, squared.

    Args:
        mean: [B, D] as generated.
        variance: [B, D] as generated, positive.
        true_mean: [B, D].
        true_std: [B, D].
        counted: [B] bool.

    Returns:
        0-d; 0, with gradients of 0, where no row is counted.
    """
    errors = (mean - true_mean).square() + (variance.sqrt() - true_std).square()
    return (errors.mean(1) * counted).sum() / counted.sum().clamp(min=1)


def class_strength(class_counts: Tensor) -> Tensor:
    """``beta_y = sqrt(n_min / n_y)``: [C] int64 counts, none of them 0, to [C] float32 in (0, 1] (below eq. 3)."""
    return (class_counts.min() / class_counts.double()).sqrt().float()


def augmented(features: Tensor, mean: Tensor, variance: Tensor, noise: Tensor, strength: Tensor) -> Tensor:
    """``a + (sqrt(var) * eps + mu) * lambda * beta_y`` (eq. 3; Sigma is a covariance, so its root is the deviation).

    Args:
        features: [N, D].
        mean: [N, D] of the transformation.
        variance: [N, D] of the transformation.
        noise: [N, D] standard normal.
        strength: [N], lambda times beta of the row's class.

    Returns:
        [N, D].
    """
    return features + (variance.sqrt() * noise + mean) * strength[:, None]


def divergences(mean: Tensor, variance: Tensor) -> Tensor:
    """``KL(N_i || N_j)`` of Gaussians with diagonal covariances (table 5), computed in float64.

    Args:
        mean: [N, D].
        variance: [N, D], positive.

    Returns:
        [N, N], a row for i and a column for j; 0 on the diagonal.
    """
    mean, variance = mean.double(), variance.double()
    ratio = variance[:, None] / variance
    return 0.5 * (ratio + (mean[:, None] - mean).square() / variance - 1 - ratio.log()).sum(2)


def partly_kept(features: Tensor, changed: Tensor, uniform: Tensor, threshold: float) -> Tensor:
    """Channel by channel, `features` where the number drawn is above t and `changed` elsewhere (eq. 4).

    Args:
        features: [N, D].
        changed: [N, D].
        uniform: [N, D] in [0, 1).
        threshold: t in [0, 1], the share that is changed.

    Returns:
        [N, D].
    """
    # The paper leaves m = t open. "Below t" makes t = 0 change nothing and t = 1 everything, for draws in [0, 1).
    return torch.where(uniform < threshold, changed, features)
