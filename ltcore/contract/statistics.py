"""Statistics of classes that several ways of augmenting features share."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize


def nearest_classes(
    queries: Tensor, means: Tensor, allowed: Tensor, k: int, metric: Literal["euclidean", "cosine"] = "euclidean"
) -> tuple[Tensor, Tensor]:
    """The k classes whose means are nearest to each query, among those that the query may take.

    Args:
        queries: [N, D].
        means: [C, D].
        allowed: [C] or [N, C] bool; which classes are candidates.
        k: how many.
        metric: Euclidean distance, or 1 minus the cosine.

    Returns:
        Classes [N, k] int64, nearest first, and their distances [N, k], in the dtype of `queries`. Where a query has
        fewer than k candidates, the distance of the missing ones is infinite and their class is of no meaning.
    """
    if metric == "cosine":
        distances = 1 - normalize(queries, dim=1) @ normalize(means, dim=1).T
    else:
        distances = torch.cdist(queries, means)
    distances = distances.masked_fill(~allowed, torch.inf)
    values, classes = distances.topk(k, dim=1, largest=False, sorted=True)
    return classes, values


def largest_classes(class_counts: Tensor, fraction: float) -> Tensor:
    """The head as a share of the classes: those with the most training images; ties go by label.

    Args:
        class_counts: [C] int64.
        fraction: share of the classes, in (0, 1); rounded to whole classes, at least one and at most C - 1.

    Returns:
        [C] bool; the rest is the tail.

    Raises:
        ValueError: there are fewer than two classes, or `fraction` is not within (0, 1).
    """
    classes = len(class_counts)
    if classes < 2 or not 0 < fraction < 1:
        raise ValueError(f"no head and tail in {classes} classes with a head of {fraction} of them")
    size = min(max(round(fraction * classes), 1), classes - 1)
    order = torch.argsort(class_counts, descending=True, stable=True)
    return torch.zeros_like(class_counts, dtype=torch.bool).index_fill_(0, order[:size], True)
