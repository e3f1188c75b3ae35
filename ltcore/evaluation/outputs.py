"""Logits of a split, with the model in eval mode."""

from __future__ import annotations

from collections.abc import Sequence
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
    return _of_crops(model, loader, batch_size, 1, tap)[0]


def pooled_crops(model: Model, loader: Loader, batch_size: int, crops: int) -> tuple[Tensor, ...]:
    """Pooled features of a split for each of an image's test crops, the centre first, as `pooled_features` gives them.

    Args:
        model: the model.
        loader: the split.
        batch_size: images at a time.
        crops: V, the transform's; with 1 it is the image as evaluation sees it.
    """
    return tuple(_of_crops(model, loader, batch_size, crops, "pooled"))


def _of_crops(model: Model, loader: Loader, batch_size: int, crops: int, tap: str) -> list[Tensor]:
    parts: list[Tensor] = []
    backbone = model.backbone

    def keep(x: Tensor) -> Tensor:
        parts.append(of_images(x, count, backbone))
        return x

    give_back()
    with evaluating(model):
        for images in loader.eval_batches(batch_size, crops > 1):
            for one in images.chunk(crops):
                count = len(one)
                backbone.run(one, at={tap: keep})
    starts = range(0, len(loader), batch_size)
    sizes = [min(batch_size, len(loader) - start) for start in starts]
    return [completed(ranks.shares_of(sizes, parts[number::crops]), loader) for number in range(crops)]


def mean_over_crops(logits: Sequence[Tensor]) -> Tensor:
    """Logits [N, C] of images: the mean of those of their crops, each [N, C]; of one, itself."""
    return logits[0] if len(logits) == 1 else torch.stack(tuple(logits)).mean(0)


def image_logits(model: nn.Module, images: Tensor, crops: int) -> Tensor:
    """Logits [N, C] float32 of images [V * N, C, H, W] as a loader gives them: the mean over an image's V crops."""
    return mean_over_crops([model(one).float() for one in images.chunk(crops)])


def logits_of(classifier: nn.Module, pooled: Tensor, batch_size: int) -> Tensor:
    """Logits [N, C] float32 of pooled features [N, D], or of those of experts, [N, E, D]."""
    with evaluating(classifier):
        return torch.cat([classifier(part).float() for part in torch.split(pooled, batch_size)])
