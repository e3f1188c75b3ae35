"""Rotation prediction and momentum contrast as pure functions.

Yang, Xu, "Rethinking the Value of Labels for Improving Class-Imbalanced Learning", NeurIPS 2020: a network that has
learned from the long-tailed images without their labels is a better start for training with them. The two tasks are
those of Gidaris, Singh, Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018, and
of He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020 (MoCo).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def balanced_turns(chance: Tensor) -> Tensor:
    """A quarter turn for each image, all four as often as the number of images allows.

    Args:
        chance: [N], drawn independently from a continuous distribution; it says who gets which.

    Returns:
        [N] int64 in 0..3.
    """
    return chance.argsort().argsort() % 4


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Each image rotated anticlockwise by its number of quarter turns.

    Args:
        images: [N, C, H, W] with H = W.
        turns: [N] int64 in 0..3.

    Returns:
        [N, C, H, W].
    """
    found = images
    for turn in (1, 2, 3):
        found = torch.where((turns == turn)[:, None, None, None], torch.rot90(images, turn, (2, 3)), found)
    return found


def momentum_contrast_loss(
    queries: Tensor, keys: Tensor, queue: Tensor, temperature: float = 0.2, spared: Tensor | None = None
) -> Tensor:
    r"""InfoNCE with the negatives in a queue (He et al. 2020, equation 1).

    .. math::

        L = \frac1N \sum_i -\log \frac{\exp(q_i \cdot k_i / T)}
            {\exp(q_i \cdot k_i / T) + \sum_j [j \text{ not spared for } i] \exp(q_i \cdot u_j / T)}

    Args:
        queries: [N, E] of norm 1.
        keys: [N, E] of norm 1: the other view of each query's image, its only positive.
        queue: [K, E] of norm 1: keys of earlier batches, u.
        temperature: T, above 0.
        spared: [N, K] bool, entries of the queue that are no negatives of a query: those of its own class in the first
            stage of SSD (Li, Wang, Wu, ICCV 2021). None where all are.

    Returns:
        0-d, in the dtype of `queries`.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    negatives = queries @ queue.T
    if spared is not None:
        negatives = negatives.masked_fill(spared, -torch.inf)
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), negatives], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.int64, device=queries.device))


@torch.no_grad()
def enqueue(queue: Tensor, pointer: Tensor, rows: Tensor) -> None:
    """Put rows into a ring, over the oldest ones, and move the pointer behind them; both are changed in place.

    Args:
        queue: [K, ...].
        pointer: 0-d int64 in [0, K): where the oldest row is. It is never read back from the device.
        rows: [N, ...]; of more than K the last K.
    """
    size, count = len(queue), len(rows)
    places = (pointer + torch.arange(count, device=queue.device)) % size
    queue.index_copy_(0, places[-size:], rows[-size:].to(queue.dtype))
    pointer.add_(count).remainder_(size)


@torch.no_grad()
def follow(followers: Iterable[Tensor], leaders: Iterable[Tensor], momentum: float) -> None:
    """Move parameters a step towards others (He et al. 2020, equation 2): ``k = m k + (1 - m) q``, in place.

    Args:
        followers: k, float.
        leaders: q, in the same order and shapes.
        momentum: m, in [0, 1].

    Raises:
        ValueError: there are more of one than of the other.
    """
    for follower, leader in zip(followers, leaders, strict=True):
        follower.lerp_(leader.to(follower.dtype), 1 - momentum)
