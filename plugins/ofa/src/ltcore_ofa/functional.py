"""OFA as pure functions: class activation maps, their two masks, confusing classes, and the fusion of two images.

P. Chu, X. Bian, S. Liu, H. Ling: Feature Space Augmentation for Long-Tailed Data, ECCV 2020 (arXiv:2008.03673).

Letters: N rows, D channels, H x W locations, L = H * W, C classes, M augmented rows. No function loops over rows. Only
`most_confusing`, called once a stage, waits for the device. Randomness comes in as numbers drawn from U[0, 1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def head_classes(class_counts: Tensor, head_ratio: float) -> Tensor:
    """Which classes are the head: the fewest of the largest that hold at least `head_ratio` of the images (sec. 5.4).

    Args:
        class_counts: [C] int64 training images a class; in any order, ties go by label.
        head_ratio: the share h_r, in (0, 1).

    Returns:
        [C] bool; the rest is the tail.
    """
    counts, order = torch.sort(class_counts, descending=True, stable=True)
    # A quotient of integers is the same double as the decimal in a recipe; a product with it need not be.
    held = torch.cumsum(counts, 0).double() / counts.sum()
    size = (held < head_ratio).sum() + 1
    return torch.zeros_like(class_counts, dtype=torch.bool).scatter_(
        0, order, torch.arange(len(counts), device=counts.device) < size
    )


def class_activation_maps(maps: Tensor, weight: Tensor, targets: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """How much each location of an image speaks for the image's own class, in [0, 1] (eq. 1, then min-max an image).

    ``M(x, y) = sum_k weight[target, k] * maps[k, x, y]``. A map that is the same everywhere becomes all zeros.

    Args:
        maps: [N, D, H, W], the maps before the global pool. Reduced precision is raised to float32, under autocast too.
        weight: [C, D] of the classifier that reads the pooled maps.
        targets: [N] int64.
        size: (H', W') to resize to, bilinearly and before the scaling; None to keep H, W.

    Returns:
        [N, H, W], or [N, H', W'].
    """
    precision = torch.promote_types(maps.dtype, torch.float32)
    with torch.autocast(maps.device.type, enabled=False):
        activation = torch.einsum("ndhw,nd->nhw", maps.to(precision), weight[targets].to(precision))
        if size is not None and size != activation.shape[1:]:
            activation = F.interpolate(activation[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    low, high = activation.amin((1, 2), keepdim=True), activation.amax((1, 2), keepdim=True)
    extent = high - low
    return (activation - low) / torch.where(extent > 0, extent, 1)


def specific_mask(activation: Tensor, threshold: float) -> Tensor:
    """Class-specific locations: activation >= tau_s (eq. 2); where there are none, the largest (all of them, if tied).

    [N, H, W] to [N, H, W] bool, at least one True a row.
    """
    return activation >= activation.amax((1, 2), keepdim=True).clamp(max=threshold)


def generic_mask(activation: Tensor, threshold: float) -> Tensor:
    """Class-generic locations: activation <= tau_g (eq. 3); where there are none, the smallest (all of them, if tied).

    [N, H, W] to [N, H, W] bool, at least one True a row.
    """
    return activation <= activation.amin((1, 2), keepdim=True).clamp(min=threshold)


def masked_mean(maps: Tensor, mask: Tensor) -> Tensor:
    """The mean vector of the locations that a mask allows: [N, D, H, W] and [N, H, W] bool to [N, D]."""
    share = mask.to(maps.dtype) / mask.sum((1, 2), keepdim=True)
    return torch.einsum("ndhw,nhw->nd", maps, share)


def draw_locations(mask: Tensor, uniform: Tensor) -> Tensor:
    """Locations drawn with replacement from those that a mask allows.

    A number u takes the ``floor(u * count)``-th of a row's `count` allowed locations, from 0 and in their order.

    Args:
        mask: [N, L] bool, at least one True a row.
        uniform: [N, S] in [0, 1), one number a draw.

    Returns:
        [N, S] int64 in [0, L).
    """
    allowed = torch.cumsum(mask, 1)  # at the r-th allowed location, r + 1 for the first time
    count = allowed[:, -1:]
    rank = torch.minimum((uniform * count).long(), count - 1)  # a u that was rounded up to 1 stays inside
    return torch.searchsorted(allowed, rank + 1)


def confusing_classes(probabilities: Tensor, targets: Tensor, num_classes: int, k: int) -> Tensor:
    """For each class, the k other classes that its own images are most taken for (sec. 4.2).

    Args:
        probabilities: [N, C] softmax scores of the training images.
        targets: [N] int64, their labels.
        num_classes: C.
        k: N_f, how many.

    Returns:
        [C, k] int64, the largest mean score first.

    Raises:
        ValueError: as `most_confusing`.
    """
    sums = probabilities.new_zeros(num_classes, num_classes).index_add_(0, targets, probabilities)
    return most_confusing(sums, torch.bincount(targets, minlength=num_classes), k)


def most_confusing(scores: Tensor, class_counts: Tensor, k: int) -> Tensor:
    """`confusing_classes` from the summed scores, for sets whose [N, C] probabilities do not fit at once.

    Within a row the sum ranks as the mean does. A class is never confusing to itself, nor where it has no image to
    bring; ties go by label.

    Args:
        scores: [C, C], entry (c, j) the sum over the images of class c of their score for class j.
        class_counts: [C] int64.
        k: how many.

    Returns:
        [C, k] int64, the largest first.

    Raises:
        ValueError: k is not between 1 and the number of other classes that have images.
    """
    others = int((class_counts > 0).sum()) - 1
    if not 1 <= k <= others:
        raise ValueError(f"{k} confusing classes were asked for; there are {others} other classes with images")
    excluded = (class_counts == 0)[None, :] | torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return torch.argsort(scores.masked_fill(excluded, -torch.inf), dim=1, descending=True, stable=True)[:, :k]


def fuse_pooled(
    tail: Tensor,
    tail_mask: Tensor,
    generic: Tensor,
    generic_mask: Tensor,
    ratio: Tensor,
    u_specific: Tensor,
    u_generic: Tensor,
) -> Tensor:
    """Augmented maps where only the pool follows, so that places carry no meaning (Algorithm 1, lines 11 to 18).

    Of the L slots, the first ``round(ratio * L)`` (half to even) take vectors drawn from the specific locations of the
    tail image, the others vectors drawn from the generic locations of the confusing image.

    Args:
        tail: [M, D, H, W] maps of the tail images.
        tail_mask: [M, H, W] bool, their `specific_mask`.
        generic: [M, D, H, W] maps of the images of confusing classes.
        generic_mask: [M, H, W] bool, their `generic_mask`, from the activation of their own labels.
        ratio: [M] in [0, 1], the share of specific vectors.
        u_specific: [M, L] in [0, 1), a draw for each slot.
        u_generic: [M, L], likewise.

    Returns:
        [M, D, H, W]; differentiable with respect to `tail` and `generic`.
    """
    slots = torch.arange(u_specific.shape[1], device=ratio.device)
    from_tail = slots < torch.round(ratio * len(slots))[:, None]
    specific = _vectors_at(tail, draw_locations(tail_mask.flatten(1), u_specific))
    rest = _vectors_at(generic, draw_locations(generic_mask.flatten(1), u_generic))
    return torch.where(from_tail[:, None], specific, rest).reshape(tail.shape)


def fuse_spatial(
    tail: Tensor,
    tail_mask: Tensor,
    generic: Tensor,
    generic_activation: Tensor,
    ratio: Tensor,
    u_specific: Tensor,
) -> Tensor:
    """Augmented maps where convolutions follow, so that places keep their meaning (sec. 5.4).

    The paper has the specific features of the confusing image replaced by specific features of the tail image, at a
    random ratio, its other places kept. Read so: the confusing image's map is the canvas; ``round(ratio * L)`` (half
    to even) of its locations, those with the highest activation of its own class first (ties by location), are
    overwritten with vectors drawn from the specific locations of the tail image. What stays is thus the most generic
    part of the canvas, where it was. The ratio counts locations of the whole map, as in `fuse_pooled`, so that it
    covers the same range from an untouched canvas (0) to tail vectors alone (1).

    Args:
        tail: [M, D, H, W] maps of the tail images at the tap.
        tail_mask: [M, H, W] bool, their `specific_mask`.
        generic: [M, D, H, W] maps of the images of confusing classes at the tap.
        generic_activation: [M, H, W], their `class_activation_maps` for their own labels.
        ratio: [M] in [0, 1].
        u_specific: [M, L] in [0, 1), a draw for each location; those of kept locations go unused.

    Returns:
        [M, D, H, W]; differentiable with respect to `tail` and `generic`.
    """
    order = torch.argsort(generic_activation.flatten(1), dim=1, descending=True, stable=True)
    rank = torch.argsort(order, dim=1)
    replaced = rank < torch.round(ratio * rank.shape[1])[:, None]
    specific = _vectors_at(tail, draw_locations(tail_mask.flatten(1), u_specific))
    return torch.where(replaced[:, None], specific, generic.flatten(2)).reshape(tail.shape)


def _vectors_at(maps: Tensor, locations: Tensor) -> Tensor:
    """[M, D, H, W] at [M, S] locations: [M, D, S]."""
    return maps.flatten(2).gather(2, locations[:, None].expand(-1, maps.shape[1], -1))
