"""Pooled features of whole splits, kept while the backbone stays as it is to the bit."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ltcore.contract.model import Model
from ltcore.evaluation.outputs import pooled_crops

if TYPE_CHECKING:
    from ltcore.data.loader import Loader

#: Bytes that are kept at most. More are computed each time.
LIMIT = 2**28


class PooledFeatures:
    """What `pooled_crops` gives, computed once for a backbone, a loader and a number of crops.

    A stage that leaves the backbone alone and the result then see the same features, which the network need not give
    again. The backbone is compared by a digest of its parameters and buffers, whatever has changed them.

    Args:
        limit: bytes that are kept at most.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit, self._size = limit, 0
        self._digest = b""
        # The loader is kept too, so that another one never has its id.
        self._kept: dict[tuple[int, int, int], tuple[Loader, tuple[Tensor, ...]]] = {}

    def crops(self, model: Model, loader: Loader, batch_size: int, crops: int = 1) -> tuple[Tensor, ...]:
        """Features for each of an image's crops, see `pooled_crops`; they are not to be written into."""
        digest = _digest_of(model.backbone)
        if digest != self._digest:
            self._kept, self._size, self._digest = {}, 0, digest
        key = (id(loader), batch_size, crops)
        if key not in self._kept:
            found = pooled_crops(model, loader, batch_size, crops)
            size = sum(each.nbytes for each in found)
            if self._size + size > self._limit:
                return found
            self._kept[key], self._size = (loader, found), self._size + size
        return self._kept[key][1]

    def at_hand(self, model: Model, loader: Loader, batch_size: int) -> Tensor | None:
        """Features of the images as evaluation sees them; None where the network would have to run."""
        _, found = self._kept.get((id(loader), batch_size, 1), (loader, None))
        return found[0] if found and _digest_of(model.backbone) == self._digest else None


def _digest_of(backbone: nn.Module) -> bytes:
    """Of all parameters and buffers with their names, shapes and types."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        content = tensor.detach().cpu().contiguous()
        found.update(np.ascontiguousarray(content.reshape(-1).view(torch.uint8).numpy()).data)
    return found.digest()
