"""Logits of a split, with the model in eval mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ltcore import ranks
from ltcore.contract.experts import of_images
from ltcore.contract.model import Model, evaluating
from ltcore.data.partial import completed
from ltcore.evaluation.memory import give_back

if TYPE_CHECKING:
    from ltcore.data.loader import Loader


def pooled_features(model: Model, loader: Loader, batch_size: int, tap: str = "pooled") -> Tensor:
    """Features of a split at a tap, without augmentation, on its device: [N, D] at ``pooled``, else [N, D, H, W].

    Where the network has split into E experts, [N, E, D] and [N, E, D, H, W]. Several processes take the batches in
    turns, so that each image is seen once, and all of them get everything.
    """
    parts, backbone = [], model.backbone

    def keep(x: Tensor) -> Tensor:
        parts.append(of_images(x, count, backbone))
        return x

    give_back()
    with evaluating(model):
        for images in loader.eval_batches(batch_size):
            count = len(images)
            backbone.run(images, at={tap: keep})
    starts = range(0, len(loader), batch_size)
    rows = ranks.shares_of([min(batch_size, len(loader) - start) for start in starts], parts)
    return completed(rows, loader)


def logits_of(classifier: nn.Module, pooled: Tensor, batch_size: int) -> Tensor:
    """Logits [N, C] float32 of pooled features [N, D], or of those of experts, [N, E, D]."""
    with evaluating(classifier):
        return torch.cat([classifier(part).float() for part in torch.split(pooled, batch_size)])
