"""CMO as pure functions: whose images are pasted, the box, and what is left of the first label.

Park, Hong, Heo, Yun, Choi, "The Majority Can Help The Minority: Context-rich Minority Oversampling for Long-tailed
Classification", CVPR 2022. The box is that of CutMix (Yun et al., ICCV 2019).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


def donor_distribution(class_counts: Tensor, power: float = 1.0, per: Literal["image", "class"] = "image") -> Tensor:
    r"""How often an image of each class is pasted.

    The paper draws class k with :math:`q(r, k) \propto n_k^{-r}`. The authors' code gives each *image*
    of class k the weight :math:`n_k^{-r}`, so that a class is drawn with :math:`n_k^{1 - r}`: at r = 1, every class
    equally often.

    Args:
        class_counts: [C], training images a class.
        power: r, at least 0.
        per: whether :math:`n_k^{-r}` is the weight of an image or of a class.

    Returns:
        [C] float64, summing to 1; 0 for a class without images.
    """
    counts = class_counts.double()
    exponent = 1 - power if per == "image" else -power
    weights = torch.where(counts > 0, counts.clamp(min=1) ** exponent, 0.0)
    return weights / weights.sum()


def symmetric_beta(uniform: Tensor, beta: float) -> Tensor:
    r"""A draw from Beta(beta, beta) for every three uniform numbers, from any generator and on any device.

    Devroye, "Random variate generation in one line of code", 1996, the line for symmetric beta variates:

    .. math:: \tfrac12 \pm \tfrac12 \left(1 + \frac{1}{(u_1^{-1/\beta} - 1) \cos^2(2 \pi u_2)}\right)^{-1/2}.

    Args:
        uniform: [..., 3] float64 in [0, 1); the third number chooses the sign.
        beta: both parameters, above 0.

    Returns:
        [...] float64 in [0, 1].
    """
    first, angle, sign = uniform.clamp(min=2.0**-60).unbind(-1)
    spread = torch.expm1(-first.log() / beta) * torch.cos(2 * math.pi * angle) ** 2
    half = 0.5 * (1 + 1 / spread).rsqrt()
    return torch.where(sign < 0.5, 0.5 - half, 0.5 + half)


def box(share: Tensor, center: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    r"""CutMix's box: sides of :math:`\sqrt{1 - \lambda}` of the image's, around any pixel, cut off at the borders.

    Args:
        share: 0-d float64, :math:`\lambda` in [0, 1]: what is to be left of the first image.
        center: [2] float64 in [0, 1), row and column, each as a part of the image's size.
        height: H in pixels.
        width: W in pixels.

    Returns:
        inside: [H, W] bool, the pixels of the box. Its sides are even numbers of pixels where no border cuts it off.
        left: 0-d float32, the share of pixels outside of the box.
    """
    root = (1 - share).sqrt()

    def within(size: int, place: Tensor) -> Tensor:
        half, middle = (size * root).floor().div(2).floor(), (size * place).floor()
        pixels = torch.arange(size, device=share.device)
        return (pixels >= middle - half) & (pixels < middle + half)

    inside = within(height, center[0])[:, None] & within(width, center[1])
    return inside, (~inside).double().mean().float()


def paste(images: Tensor, donors: Tensor, inside: Tensor) -> Tensor:
    """Each image with the pixels of its donor inside of the box.

    Args:
        images: [N, C, H, W].
        donors: [N, C, H, W].
        inside: [H, W] bool.

    Returns:
        [N, C, H, W]; no pixel is blended.
    """
    return torch.where(inside, donors, images)


def draw_one_label(targets: Tensor, partner_targets: Tensor, target_weight: Tensor, uniform: Tensor) -> Tensor:
    """One label for each row that already has two, the first one with the probability of its share.

    A pasted blend has three labels, and a batch has room for two. The loss of a row is linear in the shares of its
    labels, so that over the draws its expectation is the loss of all three.

    Args:
        targets: [N] int64.
        partner_targets: [N] int64.
        target_weight: [N] float, the share of `targets`.
        uniform: [N] float in [0, 1).

    Returns:
        [N] int64.
    """
    return torch.where(uniform < target_weight, targets, partner_targets)
