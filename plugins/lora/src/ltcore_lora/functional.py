"""Low-rank changes of a linear layer as pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def low_rank_output(x: Tensor, a: Tensor, b: Tensor, parts: int) -> list[Tensor]:
    r"""What low-rank matrices add to a layer's output, part by part.

    Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
    equation 3 without its scale: :math:`B_p A_p x` for each adapted part :math:`p` of the output.

    Args:
        x: [..., in].
        a: [parts * rank, in], the matrices :math:`A_p` below one another.
        b: [parts * rows, rank], the matrices :math:`B_p` below one another.
        parts: how many there are.

    Returns:
        `parts` tensors [..., rows].
    """
    inner = F.linear(x, a)
    return [F.linear(low, each) for low, each in zip(inner.chunk(parts, -1), b.chunk(parts), strict=True)]


def low_rank_change(a: Tensor, b: Tensor, parts: Sequence[int], pieces: int) -> Tensor:
    """The dense matrix that does what `low_rank_output` adds.

    Args:
        a: [len(parts) * rank, in].
        b: [len(parts) * rows, rank].
        parts: which pieces of the output are adapted, in the order of `a` and `b`.
        pieces: of how many pieces of `rows` the output is made.

    Returns:
        [pieces * rows, in], zero where nothing is adapted.
    """
    count = len(parts)
    rows = len(b) // count
    change = a.new_zeros(pieces, rows, a.shape[1])
    for part, low, high in zip(parts, a.chunk(count), b.chunk(count), strict=True):
        change[part] = torch.mm(high, low)
    return change.flatten(0, 1)
