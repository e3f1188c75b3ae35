"""CAM-based sampling as pure functions: foregrounds, how they are moved, and how often.

Zhang, Wei, Zhou, Wu, "Bag of Tricks for Long-Tailed Visual Recognition with Deep Convolutional Neural Networks", AAAI
2021. The activation maps are those of Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016.

Letters: N images, [H, W] their size, places in pixels from the top left, x before y. No function loops over images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def made_share(class_counts: Tensor, at_most: int | None) -> Tensor:
    """The share of a class's images that are made, once the classes are filled up.

    Class c gets ``n_max + n_min - n_c`` images more. With `at_most`, a class of that many images or more gets none, and
    every other no more than `at_most` (the published code, but on CIFAR).

    Args:
        class_counts: [C], training images a class.
        at_most: see above; None for no limit.

    Returns:
        [C] float32 in [0, 1).
    """
    counts = class_counts.float()
    made = counts.max() + counts.min() - counts
    if at_most is not None:
        made = torch.where(counts >= at_most, 0.0, made.clamp(max=at_most))
    return made / (counts + made)


def class_activation(maps: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
    """Class activation maps, from 0 to 1 in each image: ``sum_d w_d F_d``, stretched to the image's size.

    Args:
        maps: [N, D, h, w].
        weight: [N, D], of each image's class.
        height: H.
        width: W.

    Returns:
        [N, H, W] float32; 0 where an image's map is flat.
    """
    found = torch.einsum("ndhw,nd->nhw", maps.float(), weight.float())
    low, high = found.amin((1, 2), keepdim=True), found.amax((1, 2), keepdim=True)
    unit = (found - low) / (high - low).clamp(min=1e-12)
    return F.interpolate(unit[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]


def foreground(activation: Tensor, share: float) -> Tensor:
    """Where an activation map [N, H, W] is at least `share` of its mean: bool [N, H, W]."""
    return activation >= share * activation.mean((1, 2), keepdim=True)


def boxes(mask: Tensor) -> Tensor:
    """The smallest boxes around masks: bool [N, H, W] to [N, 4] float32, first x, first y, last x, last y.

    A mask without a pixel has the whole image.
    """
    ends = []
    for along in (mask.any(1), mask.any(2)):  # [N, W], [N, H]
        size, lit = along.shape[1], along.float()
        ends.append((lit.argmax(1), size - 1 - lit.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], 1).float()


def sources(box: Tensor, uniform: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel of a moved image comes from.

    One of three, each as likely: turned by -45 to 45 degrees and scaled by 0.8 to 1.2 about the middle of the box;
    shifted by whole pixels so that the box stays in the frame; flipped from left to right.

    Args:
        box: [N, 4], see `boxes`.
        uniform: [N, 5] in [0, 1): which, angle, scale, shift in x and y.
        height: H.
        width: W.

    Returns:
        [N, H, W, 2], x and y.
    """
    which, angle, scale, shift_x, shift_y = uniform.T[:, :, None, None]
    x0, y0, x1, y1 = box.T[:, :, None, None]
    y, x = torch.meshgrid(*(torch.arange(size, device=box.device) for size in (height, width)), indexing="ij")
    angle, scale = torch.deg2rad(90 * angle - 45), 0.8 + 0.4 * scale
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    off_x, off_y, cos, sin = x - middle_x, y - middle_y, angle.cos(), angle.sin()
    turned = torch.stack(
        [(cos * off_x - sin * off_y) / scale + middle_x, (sin * off_x + cos * off_y) / scale + middle_y], -1
    )
    by_x = (shift_x * (width - x1 + x0)).floor() - x0
    by_y = (shift_y * (height - y1 + y0)).floor() - y0
    shifted = torch.stack([x - by_x, y - by_y], -1)
    flipped = torch.stack([width - 1 - x, y], -1).expand_as(turned)
    which = which[..., None]
    return torch.where(which < 1 / 3, turned, torch.where(which < 2 / 3, shifted, flipped))


def moved(images: Tensor, places: Tensor) -> Tensor:
    """Images [N, C, H, W] read at places [N, H, W, 2], bilinear; 0 outside of the frame."""
    size = torch.tensor([images.shape[3] - 1, images.shape[2] - 1], dtype=torch.float32).clamp(min=1)
    grid = 2 * places / size.to(places.device, non_blocking=True) - 1
    return F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=True)


def paste(images: Tensor, mask: Tensor, places: Tensor) -> Tensor:
    """Each image with its foreground moved: the moved image wherever the foreground was or now is, within the frame.

    Args:
        images: [N, C, H, W].
        mask: [N, H, W] bool, the foreground.
        places: [N, H, W, 2], see `sources`.
    """
    both = torch.stack([mask.float(), torch.ones_like(mask, dtype=torch.float32)], 1)
    now, inside = moved(both, places).unbind(1)
    taken = ((now > 0) | mask) & (inside > 0.999)
    return torch.where(taken[:, None], moved(images, places), images)
