"""Pairs of images that nearly coincide: shifted by a pixel, scaled, compressed anew, with another edge.

Two images are as alike as the mean of two cosines: that of their thumbnails without the mean brightness, and that of
their features less the mean of the training features. Small changes of an image move its features further than its
thumbnail, while thumbnails alone take smooth pictures for each other. Images are never more alike than their thumbnails
are, because training brings the features of a class together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

#: Pixels of a thumbnail's side, and rows that are compared at a time with all others.
SIDE, _ROWS = 16, 256


@dataclass(frozen=True)
class Vectors:
    """What is compared of a split.

    Attributes:
        features: [N, D].
        thumbnails: [N, P].
        targets: [N] int64.
    """

    features: Tensor
    thumbnails: Tensor
    targets: Tensor


class Pair(NamedTuple):
    """Two images that nearly coincide: split and place of each, and how alike they are, up to 1."""

    split: str
    at: int
    other_split: str
    other: int
    alike: float


def thumbnails_of(images: Tensor) -> Tensor:
    """Thumbnails [N, C * SIDE * SIDE] of images [N, C, H, W]."""
    return adaptive_avg_pool2d(images.float(), SIDE).flatten(1)


def near_duplicates(splits: Mapping[str, Vectors], least: float) -> list[Pair]:
    """Images of one split or of two that nearly coincide, the most alike first.

    Partners are sought before it in its own split, and in those listed earlier. From each comes one of the same label,
    and one of another: the nearest.

    Args:
        splits: by name, the training split first.
        least: how alike a pair must be, between 0 and 1.
    """
    mean = next(iter(splits.values())).features.mean(0)
    units = {name: (_units(each.features - mean), _units(_levelled(each.thumbnails))) for name, each in splits.items()}
    found: list[Pair] = []
    names = list(splits)
    for number, name in enumerate(names):
        for earlier in names[: number + 1]:
            for at, other, alike in _alike(units[name], units[earlier], splits, (name, earlier), least):
                found.append(Pair(name, at, earlier, other, alike))
    return sorted(found, key=lambda pair: -pair.alike)


def _alike(
    ours: tuple[Tensor, Tensor],
    theirs: tuple[Tensor, Tensor],
    splits: Mapping[str, Vectors],
    names: tuple[str, str],
    least: float,
) -> Iterator[tuple[int, int, float]]:
    """Places in the one split and in the other, and how alike they are."""
    labels, others = (splits[name].targets for name in names)
    for start in range(0, len(labels), _ROWS):
        rows = slice(start, start + _ROWS)
        thumbnails = ours[1][rows] @ theirs[1].T
        alike = torch.minimum((ours[0][rows] @ theirs[0].T + thumbnails) / 2, thumbnails)
        if names[0] == names[1]:
            alike = alike.tril(start - 1)  # each pair once, and none with itself
        same = labels[rows, None] == others
        for among in (same, ~same):
            best, place = torch.where(among, alike, 0.0).max(1)
            for row in torch.nonzero(best >= least).flatten().tolist():
                yield start + row, int(place[row]), float(best[row])


def _levelled(rows: Tensor) -> Tensor:
    return rows - rows.mean(1, keepdim=True)


def _units(rows: Tensor) -> Tensor:
    return normalize(rows.float(), dim=1)
