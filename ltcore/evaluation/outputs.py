"""Logits of a split, with the model in eval mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ltcore.contract.model import Model, evaluating
from ltcore.data.partial import completed

if TYPE_CHECKING:
    from ltcore.data.loader import Loader


def pooled_features(model: Model, loader: Loader, batch_size: int, tap: str = "pooled") -> Tensor:
    """Features of a split at a tap, without augmentation, on its device: [N, D] at ``pooled``, else [N, D, H, W]."""
    parts = []

    def keep(x: Tensor) -> Tensor:
        parts.append(x)
        return x

    with evaluating(model):
        for images in loader.eval_batches(batch_size):
            model.backbone.run(images, at={tap: keep})
    return completed(torch.cat(parts), loader)


def logits_of(classifier: nn.Module, pooled: Tensor, batch_size: int) -> Tensor:
    """Logits [N, C] float32 of pooled features [N, D]."""
    with evaluating(classifier):
        return torch.cat([classifier(part).float() for part in torch.split(pooled, batch_size)])
