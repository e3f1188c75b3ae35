"""From gradients to weights of training images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def normalised(weights: Tensor) -> Tensor:
    """Weights as factors of a mean: with their sum made N, the mean of weighed values is their weighted mean.

    Weights that are all 0 stay as they are (Ren et al. 2018, equation 7).

    Args:
        weights: [N], at least 0.
    """
    total = weights.sum()
    return weights / torch.where(total == 0, torch.ones_like(total), total) * len(weights)


def aligned_weights(alignments: Tensor) -> Tensor:
    """L2RW's weights of a batch (Ren et al. 2018, equations 6 and 7), as factors of its mean loss.

    Args:
        alignments: [N], by how much the meta loss falls for a little more of each image: its negative derivative in
            the image's weight, in any unit.

    Returns:
        [N]: an image that helps has a share of N, one that harms has 0. All are 0 where none helps.
    """
    return normalised(alignments.clamp(min=0))


def look_ahead(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], rate: float) -> dict[str, Tensor]:
    """Weights after a plain gradient step, without momentum and decay; the graph of the gradients goes on.

    Args:
        weights: by name.
        gradients: of some of them, by name.
        rate: the step's learning rate.

    Returns:
        New values of those that have a gradient.
    """
    return {name: weights[name] - rate * gradient for name, gradient in gradients.items()}


def balanced_draw(targets: Tensor, num_classes: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw meta images without repetition, every class as likely as every other.

    Where all classes have equally many, every image is as likely as every other.

    Args:
        targets: [M] int64, labels of the meta set.
        num_classes: C.
        size: how many to draw; all M where there are no more.
        generator: draws them, where the labels are.

    Returns:
        [min(size, M)] int64 indices.
    """
    ones = torch.ones(len(targets), device=targets.device)
    counts = torch.zeros(num_classes, device=targets.device).index_add_(0, targets, ones)
    return torch.multinomial(1 / counts[targets], min(size, len(targets)), generator=generator)
