r"""OLTR as pure functions.

Z. Liu, Z. Miao, X. Zhan, J. Wang, B. Gong, S. X. Yu, "Large-Scale Long-Tailed Recognition in an Open World", CVPR
2019; where it leaves a choice, the code that its authors published decides.

N rows, D their width, C classes, H x W locations. Squares of distances are expanded, so no [N, C, D] is held.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Smallest squared distance that a feature is taken to have from a centroid.
_SMALLEST = 1e-4


def squared_distances(features: Tensor, centroids: Tensor) -> Tensor:
    """[N, D] and [C, D] to [N, C], at least 0."""
    squares = features.square().sum(1, keepdim=True) + centroids.square().sum(1)
    return (squares - 2 * features @ centroids.T).clamp(min=0)


def meta_embedding(direct: Tensor, centroids: Tensor, coefficients: Tensor, selector: Tensor, reach: float) -> Tensor:
    r"""Dynamic meta-embedding: the direct feature, and beside it what the memory says, both scaled by reachability.

    Equations 1 to 4, and the squashing of equation 6, with the coefficients :math:`o` (logits) and the selector
    :math:`e` as linear layers give them:

    .. math::
        v = \mathrm{softmax}(o)\, M, \qquad g = \frac{r}{\min_k \|f - m_k\|}, \qquad
        u = g\,(f + \tanh(e) \odot v), \qquad \frac{\|u\|}{1 + \|u\|} \frac{u}{\|u\|} = \frac{u}{1 + \|u\|}.

    The paper's equation 6 has :math:`\|u\|^2 / (1 + \|u\|^2)`; this is the code's. Centroids enter as data.

    Args:
        direct: [N, D], f.
        centroids: [C, D], M; no gradient reaches them.
        coefficients: [N, C], o.
        selector: [N, D], e.
        reach: r, 10 in the code and 1 in the paper.

    Returns:
        [N, D], of norm below 1.
    """
    memory = centroids.detach()
    nearest = squared_distances(direct, memory).amin(1, keepdim=True).clamp(min=_SMALLEST).sqrt()
    scaled = reach / nearest * (direct + selector.tanh() * (coefficients.softmax(1) @ memory))
    norms: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / (1 + norms)


def modulated_attention(maps: Tensor, attended: Tensor, shares: Tensor) -> Tensor:
    r"""Equation 7: :math:`F + \mathrm{softmax}(a) \odot SA(F)`, where the softmax is over locations.

    Args:
        maps: [N, D, H, W], F.
        attended: [N, D, H, W], the self-attention of F.
        shares: [N, H W], a.

    Returns:
        [N, D, H, W].
    """
    return maps + shares.softmax(1).view(-1, 1, *maps.shape[2:]) * attended


def attraction(direct: Tensor, centroids: Tensor, targets: Tensor) -> Tensor:
    r"""Half the squared distance to the own centroid, :math:`\frac{1}{2 N} \sum_i \|f_i - m_{y_i}\|^2`.

    The gradient in f is that of the formula. As in the published code, centroids get one of their own,
    :math:`\frac{1}{N (1 + n_c)} \sum_{i: y_i = c} (m_c - f_i)` with :math:`n_c` rows of the class, so that a class
    with many rows in the batch moves no faster.

    Args:
        direct: [N, D], f.
        centroids: [C, D], M.
        targets: [N] int64.

    Returns:
        0-d.
    """
    own = centroids[targets]
    pull = (direct - own.detach()).square().sum(1)
    rows = (targets[:, None] == targets).sum(1)
    follow = (direct.detach() - own).square().sum(1) / (1 + rows)
    return (pull + follow - follow.detach()).mean() / 2


def repulsion(direct: Tensor, centroids: Tensor, targets: Tensor, margin: float = 10.0) -> Tensor:
    r"""By how much the squared distances to other centroids miss a margin, on average.

    As in the published code, :math:`\max(0,\; m - \frac{1}{N C} \sum_i \sum_{k \ne y_i} \|f_i - m_k\|^2)`: one mean
    over the whole batch, in which own centroids count as 0.

    Args:
        direct: [N, D], f.
        centroids: [C, D], M.
        targets: [N] int64.
        margin: m.

    Returns:
        0-d.
    """
    distances = squared_distances(direct, centroids)
    others = 1 - F.one_hot(targets, len(centroids)).to(distances.dtype)
    return (margin - (distances * others).mean()).clamp(min=0)
