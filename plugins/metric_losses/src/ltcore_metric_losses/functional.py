"""Range loss and lifted structure loss as pure functions.

Shapes depend on the inputs' shapes alone, so nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Smallest squared distance that is told from 0.
_SMALLEST = 1e-6


def squared_distances(features: Tensor) -> Tensor:
    """Squared Euclidean distances of all rows to all rows: [N, D] float to [N, N], at least 0.

    Squares are expanded, so no [N, N, D] is held. The mean is taken away first, which keeps the numbers small.
    """
    centred = features - features.mean(0, keepdim=True).detach()
    squares = centred.square().sum(1)
    return (squares[:, None] + squares - 2 * centred @ centred.T).clamp(min=0)


def range_within(features: Tensor, targets: Tensor, num_classes: int, largest: int = 2) -> Tensor:
    r"""How far the farthest rows of each class lie apart: the intra-class part of range loss.

    Zhang, Fang, Wen, Li, Qiao, "Range Loss for Deep Face Recognition with Long-Tailed Training Data", ICCV 2017: with
    :math:`D_{c,1}, \dots, D_{c,k}` the k largest squared distances between two rows of class c,

    .. math:: L = \sum_c \frac{k}{\sum_{t=1}^{k} 1 / D_{c,t}}.

    The harmonic mean follows the smallest of them, so that one outlier counts for little. A class with fewer pairs
    takes the mean of those that it has, a class without a pair adds nothing.

    Args:
        features: [N, D] float32 or better.
        targets: [N] int64 in [0, C).
        num_classes: C.
        largest: k, at least 1.

    Returns:
        0-d, a sum over classes.
    """
    rows = len(targets)
    pairs = torch.triu_indices(rows, rows, 1, device=targets.device)
    first, second = targets[pairs[0]], targets[pairs[1]]
    # Pairs of two classes go behind all others, as if they were of one class more.
    classes = torch.where(first == second, first, num_classes)
    distances = squared_distances(features)[pairs[0], pairs[1]]
    if not len(distances):
        return features.sum() * 0
    order = torch.argsort(distances.detach(), descending=True, stable=True)
    order = order[torch.argsort(classes[order], stable=True)]
    bounds = torch.searchsorted(classes[order], torch.arange(num_classes + 1, device=targets.device))
    places = bounds[:-1, None] + torch.arange(largest, device=targets.device)
    there = places < bounds[1:, None]
    chosen = distances[order[places.clamp(max=len(order) - 1)]].clamp(min=_SMALLEST)
    inverse = (there / chosen).sum(1)
    number = there.sum(1)
    means = number / inverse.masked_fill(number == 0, 1.0)
    return means.sum()


def range_between(features: Tensor, targets: Tensor, margin: float = 2e4) -> Tensor:
    r"""By how much the two nearest class centres of the batch miss a margin: the inter-class part of range loss.

    Zhang et al. 2017: with the means :math:`\mu_c` of the classes that the batch has,

    .. math:: L = \max\left(M - \min_{a \ne b} \|\mu_a - \mu_b\|^2,\; 0\right).

    Args:
        features: [N, D] float32 or better.
        targets: [N] int64.
        margin: M, of a squared distance.

    Returns:
        0-d; 0 where the batch has one class.
    """
    same = targets[:, None] == targets
    shares = same.to(features.dtype)
    # Row i is the mean of its class, so there are no more centres than rows however many classes there are.
    centres = shares / shares.sum(1, keepdim=True) @ features
    distances = squared_distances(centres).masked_fill(same, torch.inf)
    # The entries of one pair of classes are equal, and `amin` shares the gradient out among them.
    return (margin - distances.amin()).clamp(min=0)


def lifted_structure_loss(features: Tensor, targets: Tensor, margin: float = 1.0) -> Tensor:
    r"""Every pair of one class against all rows of other classes that either of them meets.

    Oh Song, Xiang, Jegelka, Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016,
    equation 4: with the distance :math:`D_{ij}`, the pairs P of one class and the rows :math:`N_i` of other classes
    than i's,

    .. math::
        J_{ij} = \log\Big(\sum_{n \in N_i} e^{m - D_{in}} + \sum_{n \in N_j} e^{m - D_{jn}}\Big) + D_{ij}, \qquad
        L = \frac{1}{2 |P|} \sum_{(i,j) \in P} \max(J_{ij}, 0)^2.

    Args:
        features: [N, D] float32 or better.
        targets: [N] int64.
        margin: m.

    Returns:
        0-d; 0 where the batch has no two rows of one class, or one class alone.
    """
    distances = squared_distances(features).clamp(min=_SMALLEST).sqrt()
    same = targets[:, None] == targets
    # Not minus infinity: a row without others would have a gradient that is no number.
    nothing = torch.finfo(distances.dtype).min / 4
    others = (margin - distances).masked_fill(same, nothing).logsumexp(1)
    values = F.relu(torch.logaddexp(others[:, None], others) + distances).square()
    pairs = same.triu(1)
    return (values * pairs).sum() / (2 * pairs.sum().clamp(min=1))
