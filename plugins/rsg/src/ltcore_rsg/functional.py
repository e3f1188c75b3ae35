"""RSG as pure functions: centres, variation off them, the losses, and which rows of a batch are paired.

J. Wang, T. Lukasiewicz, X. Hu, J. Cai, Z. Xu: RSG: A Simple but Effective Module for Learning Imbalanced Datasets, CVPR
2021; where it leaves a choice, the code that its authors published decides.

Letters: N or M rows, D channels, H x W locations, C classes, J centres a class. Reduced precision is raised to float32.
No function loops over rows. `paired_rows` works on the CPU; no other one waits for the device.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

#: What counts as one vector of a map [D, H, W], see `vector_loss`.
Vectors = Literal["stored", "locations"]


def centre_shares(pooled: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """How much each centre of its class a row belongs to (gamma): the softmax of a linear map that its class has.

    Args:
        pooled: [N, D], the mean of the maps over their locations.
        weight: [C, D, J].
        bias: [C, J].
        targets: [N] int64.

    Returns:
        [N, J], rows sum to 1.
    """
    return (torch.einsum("nd,ndj->nj", _raised(pooled), _raised(weight)[targets]) + bias[targets]).softmax(1)


def centre_loss(maps: Tensor, centres: Tensor, shares: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of maps to the centres of their class, weighed by the shares (first term of L_CESC).

    ``mean_n sum_j gamma_nj |F_n - c_j|^2``, where a centre [D] stands at every location. The square is expanded, so no
    difference [N, J, D, H, W] is ever held.

    Args:
        maps: [N, D, H, W].
        centres: [C, J, D].
        shares: [N, J], see `centre_shares`.
        targets: [N] int64.

    Returns:
        0-d; a sum over channels and locations, a mean over rows.
    """
    maps, own = _raised(maps), _raised(centres)[targets]
    locations = maps.shape[2] * maps.shape[3]
    squares, sums = maps.square().sum((1, 2, 3)), maps.sum((2, 3))
    distances = squares[:, None] - 2 * torch.einsum("nd,njd->nj", sums, own) + locations * own.square().sum(2)
    return (shares * distances).sum(1).mean()


def off_centre(maps: Tensor, centres: Tensor, shares: Tensor, targets: Tensor) -> Tensor:
    """Maps less the most probable centre of their class, at every location.

    Args:
        maps: [N, D, H, W].
        centres: [C, J, D].
        shares: [N, J]; ties go to the first centre.
        targets: [N] int64.

    Returns:
        [N, D, H, W].
    """
    chosen = _raised(centres)[targets, shares.argmax(1)]
    return _raised(maps) - chosen[:, :, None, None]


def vector_loss(moved: Tensor, variation: Tensor, tail: Tensor, vectors: Vectors) -> Tensor:
    """How far moved variation is from its old length and from the tail rows' own direction (second part of L_MV).

    ``(1 / M) sum_v [ abs(|T(v)| - |v|) + 1 - cos(T(v), t) ]`` over the vectors v of all maps. The public code sums
    ``abs(a b - 1)`` over the elements of the two unit vectors. No product of theirs is above 1, so that is this and
    D - 1 more for each vector, from which nothing is learned.

    Args:
        moved: [M, D, H, W], T of `variation`.
        variation: [M, D, H, W], what `off_centre` gives for head rows.
        tail: [M, D, H, W], what it gives for the tail rows that they go to.
        vectors: ``locations`` for the D channels of a location; ``stored``, as in the public code, for D neighbours in
            memory: values of one channel where a map has at least D locations.

    Returns:
        0-d; a sum over vectors, a mean over rows.
    """
    rows = len(moved)
    moved, variation, tail = (_as_vectors(_raised(x), vectors) for x in (moved, variation, tail))
    lengths = (torch.linalg.vector_norm(moved, dim=1) - torch.linalg.vector_norm(variation, dim=1)).abs()
    cosines = (F.normalize(moved, dim=1) * F.normalize(tail, dim=1)).sum(1)
    loss: Tensor = (lengths + 1 - cosines).sum() / rows
    return loss


def same_class(targets: Tensor) -> Tensor:
    """Whether the first and the second half of a batch agree, row by row; the last row of an odd batch is left out.

    [N] int64 to [N // 2] int64, 1 where two labels are the same.
    """
    half = len(targets) // 2
    return (targets[:half] == targets[half : 2 * half]).long()


def repeats(head: int, tail: int, strength: float) -> int:
    """How often the scarcer side of a batch is paired with rows of the other, at least once.

    Args:
        head: number of head rows, at least 1.
        tail: number of tail rows, at least 1.
        strength: share of the other side that is used.
    """
    return max(1, int(max(head, tail) * strength / min(head, tail)))


def paired_rows(is_head: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Which head row gives its variation to which tail row: both are taken in the batch's order, again and again.

    Args:
        is_head: [B] bool, on the CPU.
        rows: M, how many pairs.

    Returns:
        Two times [M] int64, places in the batch of head and of tail rows; none where one of the two is missing.
    """
    heads, tails = is_head.nonzero()[:, 0], (~is_head).nonzero()[:, 0]
    if not len(heads) or not len(tails):
        rows = 0
    turn = torch.arange(rows)
    return heads[turn % max(1, len(heads))], tails[turn % max(1, len(tails))]


def _as_vectors(maps: Tensor, vectors: Vectors) -> Tensor:
    """[M, D, H, W] to [M H W, D]."""
    channels = maps.shape[1]
    if vectors == "locations":
        maps = maps.permute(0, 2, 3, 1)
    return maps.reshape(-1, channels)


def _raised(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
