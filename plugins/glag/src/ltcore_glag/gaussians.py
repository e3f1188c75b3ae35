"""The adaptive feature generator's Gaussians: class statistics, calibration and draws, without a covariance matrix.

A draw from ``N(0, cov)`` of a class is a sum of the class's own centred features with normal coefficients, since its
covariance is the mean of their outer products. So a class with fewer images than dimensions costs what its images cost,
and no matrix [D, D] is ever formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ltcore import nearest_classes

#: The ladder's logarithm (power 0) is taken of nothing smaller.
SMALLEST = 1e-6
#: Values that are held in float64 at once while the statistics are made.
_VALUES_AT_ONCE = 2**23


def ladder(features: Tensor, power: float) -> Tensor:
    """Tukey's ladder of powers: ``x ** power``, and ``log x`` at power 0.

    The ladder is for non-negative values, such as what follows a ReLU: below 0 counts as 0, and for the logarithm below
    `SMALLEST` as `SMALLEST`. At power 1 nothing changes, negative values neither.

    Args:
        features: any shape, float.
        power: at least 0.
    """
    if power == 1:
        return features
    if power == 0:
        return features.clamp(min=SMALLEST).log()
    return features.clamp(min=0).sqrt() if power == 0.5 else features.clamp(min=0) ** power


def descend(transformed: Tensor, power: float) -> Tensor:
    """Back from `ladder` to features: ``x ** (1 / power)`` (below 0 counts as 0), ``exp x`` at power 0."""
    if power == 1:
        return transformed
    if power == 0:
        return transformed.exp()
    positive = transformed.clamp(min=0)
    return positive.square() if power == 0.5 else positive ** (1 / power)


@dataclass(frozen=True)
class FeatureBank:
    """The training features of each class on the ladder, and the statistics made of them.

    Attributes:
        centred: [N, D], in the dtype of the features; row by row class after class, less the class's mean.
        means: [C, D] float32, equation 5.
        start: [C] int64; where each class's rows begin.
        counts: [C] int64; its rows.
    """

    centred: Tensor
    means: Tensor
    start: Tensor
    counts: Tensor


def feature_bank(features: Tensor, targets: Tensor, class_counts: Tensor, power: float) -> FeatureBank:
    """Statistics of the training features (equations 5 and 6); the covariances stay in their factors.

    Args:
        features: [N, D] float; half precision is enough.
        targets: [N] int64 on the CPU.
        class_counts: [C], at least 1 each.
        power: of `ladder`.

    Returns:
        The bank on the device of `features`; means are taken in float64.
    """
    device, counts = features.device, class_counts.cpu()
    order = torch.argsort(targets, stable=True).to(device)
    centred = torch.empty_like(features)
    means = torch.empty(len(counts), features.shape[1], device=device)
    for classes, rows in _class_blocks(counts, max(1, _VALUES_AT_ONCE // features.shape[1])):
        x = ladder(features[order[rows]], power)
        lengths = counts[classes].to(device)
        mean = torch.segment_reduce(x.double(), "mean", lengths=lengths, axis=0)
        means[classes] = mean.float()
        centred[rows] = (x.double() - mean.repeat_interleave(lengths, 0)).to(features.dtype)
    start = torch.cumsum(counts, 0) - counts
    return FeatureBank(centred, means, start.to(device), counts.to(device))


def _class_blocks(counts: Tensor, rows: int) -> Iterator[tuple[slice, slice]]:
    """Runs of whole classes with about `rows` rows: slices of classes and of rows."""
    ends = torch.cumsum(counts, 0)
    first = began = 0
    while first < len(counts):
        last = max(first + 1, int(torch.searchsorted(ends, torch.tensor(began + rows), right=True)))
        ended = int(ends[last - 1])
        yield slice(first, last), slice(began, ended)
        first, began = last, ended


def support_set(x: Tensor, targets: Tensor, bank: FeatureBank, neighbours: int) -> tuple[Tensor, Tensor]:
    r"""Equations 7 and 10: the classes that a sample learns from, and how much from each.

    The K nearest class means among the classes with more training images than the sample's own, with weights
    :math:`\omega_j = N_j / d_{ij}`.

    Args:
        x: [N, D] float32 on the ladder.
        targets: [N] int64.
        bank: the statistics.
        neighbours: K, at most C.

    Returns:
        Classes [N, K] int64 and weights [N, K] float32 that sum to 1 in a row. Where fewer classes are larger, the
        missing ones have weight 0; for a sample of the largest class, all have.
    """
    allowed = bank.counts[None] > bank.counts[targets][:, None]
    classes, distance = nearest_classes(x, bank.means, allowed, neighbours)
    weights = bank.counts[classes] / distance.clamp(min=1e-12)
    return classes, weights / weights.sum(1, keepdim=True).clamp(min=1e-30)


def calibrated_means(x: Tensor, confidence: Tensor, means: Tensor, weights: Tensor) -> Tensor:
    r"""Equation 8: :math:`(1 - \beta) \hat x + \beta \sum_j \omega_j \mu_j / \sum_j \omega_j`.

    Args:
        x: [N, D].
        confidence: [N], :math:`\beta` in [0, 1].
        means: [N, K, D].
        weights: [N, K], summing to 1.

    Returns:
        [N, D].
    """
    share = confidence[:, None]
    return (1 - share) * x + share * torch.einsum("nk,nkd->nd", weights, means)


def deviations(bank: FeatureBank, classes: Tensor, scale: Tensor, normal: Tensor, uniform: Tensor) -> Tensor:
    r"""Sums of independent draws from ``N(0, scale**2 * cov)`` of several classes, without their covariances.

    A class of n images is drawn as :math:`\sum_k \epsilon_k (x_k - \mu) / \sqrt{n - 1}` over its images, which has
    equation 6 for its covariance. That is exact up to n = m. A larger class uses m of its images, one from each m-th
    part of them, chosen anew for every row, and :math:`\sqrt{n / (m (n - 1))}`: the covariance over the choices is
    again exactly that of equation 6. One image has no covariance, and deviates by 0.

    Args:
        bank: the statistics.
        classes: [N, J] int64.
        scale: [N, J] float.
        normal: [N, J, m] draws from N(0, 1).
        uniform: [N, J, m] draws from U[0, 1).

    Returns:
        [N, D] in the dtype of the bank.
    """
    images = normal.shape[2]
    n = bank.counts[classes][:, :, None]
    position = torch.arange(images, device=normal.device)
    chosen = torch.minimum(((position + uniform) * (n / images)).long(), n - 1)
    rank = torch.where(n <= images, torch.minimum(position, n - 1), chosen)
    share = torch.where(n <= images, (position < n).to(normal.dtype), n / images)
    coefficient = normal * scale[:, :, None] * (share / (n - 1).clamp(min=1)).sqrt()
    index = bank.start[classes][:, :, None] + rank
    weights = coefficient.flatten(1).to(bank.centred.dtype)
    return F.embedding_bag(index.flatten(1), bank.centred, per_sample_weights=weights, mode="sum")
