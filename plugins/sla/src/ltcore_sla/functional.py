"""SLA as pure functions: changed copies of images, joint labels, and what is distilled.

Lee, Hwang, Shin, "Self-supervised Label Augmentation via Input Transformations", ICML 2020. M changes of an image are
told apart as well as its C classes: change j of an image of class y has the joint label y * M + j.

Rows of M copies of B images stand change by change: all images unchanged, all images with the first change, and so on.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

#: How the channels of a copy are ordered, by how many orders there are; the first changes nothing.
ORDERS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((0, 1, 2),),
    3: ((0, 1, 2), (1, 2, 0), (2, 0, 1)),
    6: ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)),
}


def changed_copies(images: Tensor, rotations: int, colours: int) -> Tensor:
    """All copies but the unchanged one: rotated by equal angles, and each of these with its channels in other orders.

    Args:
        images: [B, C, H, W], H = W for more than two rotations, C = 3 for more than one order.
        rotations: 1, 2 (0 and 180 degrees) or 4 (anticlockwise by 90 degrees each).
        colours: 1, 3 or 6 orders of the channels, see `ORDERS`.

    Returns:
        [(M - 1) * B, C, H, W], M = rotations * colours.
    """
    turned = [torch.rot90(images, turn * 4 // rotations, (2, 3)) for turn in range(rotations)]
    copies = [copy if colours == 1 else copy[:, list(order)] for copy, order in product(turned, ORDERS[colours])]
    return torch.cat(copies[1:]).contiguous(memory_format=torch.preserve_format)


def joint_labels(targets: Tensor, changes: int) -> Tensor:
    """``y * M + j`` of the M copies of each image: [B] int64 to [M * B] int64."""
    return torch.cat([targets * changes + change for change in range(changes)])


def aggregated(logits: Tensor, changes: int) -> Tensor:
    """The mean over the copies of each copy's logits for its own change (the paper's equation 4).

    Args:
        logits: [M * B, C * M] of the joint labels.
        changes: M.

    Returns:
        [B, C].
    """
    by_change = logits.view(changes, -1, logits.shape[1] // changes, changes)  # [M, B, C, M]
    return torch.diagonal(by_change, dim1=0, dim2=3).mean(2)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""How far the plain classifier is from the aggregated one: :math:`T^2 KL(p_{teacher} \| p_{student})`.

    Args:
        student: [B, C] logits.
        teacher: [B, C] logits; no gradient reaches them.
        temperature: T, what both are divided by.

    Returns:
        0-d, the mean over images, in nats.
    """
    wanted, found = ((logits / temperature).log_softmax(1) for logits in (teacher.detach(), student))
    return temperature**2 * F.kl_div(found, wanted, reduction="batchmean", log_target=True)
