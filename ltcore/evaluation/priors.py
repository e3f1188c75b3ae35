"""How often each class occurs where a model is used, and a model's outputs adjusted to that.

A classifier that learned from classes as frequent as p_s gives p_s(y | x). Let the classes be as frequent as p_t, and
look the same. Then p_t(y | x) is proportional to p_s(y | x) p_t(y) / p_s(y) (Saerens et al. 2002, Neural Computation
14, equation 2.4). So log p_t - log p_s is added to each logit. LADE (Hong et al. 2021) and SADE (Zhang et al. 2022)
compare methods on such test sets. There the classes are as frequent as in training, in the reverse order, or all
equally frequent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ltcore.data.tables import read_table
from ltcore.errors import DataError, RecipeError, listed, nearest
from ltcore.evaluation.metrics import ECE_BINS, rank

#: What ``--prior`` may name beside a file; forward and backward have an imbalance factor behind a colon.
NAMES = ("uniform", "training", "forward:FACTOR", "backward:FACTOR")


@dataclass(frozen=True)
class Prior:
    """How frequent the classes are.

    Attributes:
        name: as it was asked for.
        shares: [C] float64, none 0, of sum 1.
    """

    name: str
    shares: Tensor


def read_prior(asked: str, class_counts: Sequence[int], class_names: Sequence[str]) -> Prior:
    """The prior of a name, or of a table.

    Args:
        asked: ``uniform``, or ``training`` (as frequent as in training). ``forward:R`` falls exponentially by a factor
            R in all, from the class that is most frequent in training to the rarest; ``backward:R`` rises so. Or the
            path of a table with a column of class names and one of numbers (shares or images).
        class_counts: training images of each class, [C].
        class_names: C names.

    Raises:
        RecipeError: there is no such prior.
        DataError: the table is not one of the run's classes, or a number is not above 0.
    """
    counts = torch.tensor(class_counts, dtype=torch.float64)
    kind, _, factor = asked.partition(":")
    if asked == "uniform":
        found = torch.ones_like(counts)
    elif asked == "training":
        found = counts
    elif kind in ("forward", "backward") and factor:
        try:
            ratio = float(factor)
        except ValueError:
            ratio = 0.0
        if not 1 <= ratio < float("inf"):
            raise RecipeError(f"--prior {asked}: the imbalance factor must be a number, 1 or more")
        order = torch.argsort(counts, descending=True, stable=True)
        falling = ratio ** -(torch.arange(len(counts), dtype=torch.float64) / max(len(counts) - 1, 1))
        found = torch.empty_like(counts)
        found[order] = falling if kind == "forward" else falling.flip(0)
    else:
        found = _table(Path(asked), class_names)
    return Prior(asked, found / found.sum())


def _table(path: Path, class_names: Sequence[str]) -> Tensor:
    if not path.is_file():
        raise RecipeError(f"--prior {path}: there is no such file, and it is none of {listed(NAMES)}")
    table = read_table(path)
    if len(table.columns) != 2:
        raise DataError(f"{path} has {len(table.columns)} columns; a prior has two, class names and numbers")
    found: dict[str, float] = {}
    for row, (name, number) in enumerate(table.rows):
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise table.error(row, f"'{number}' is no number above 0; write how frequent the class is")
        if name not in class_names:
            raise table.error(row, f"the run has no class '{name}'{nearest(name, class_names)}")
        if name in found:
            raise table.error(row, f"the class '{name}' stands there twice")
        found[name] = value
    if lacking := [name for name in class_names if name not in found]:
        raise DataError(f"{path} lacks {len(lacking)} classes of the run, first '{lacking[0]}'; add a line for each")
    return torch.tensor([found[name] for name in class_names], dtype=torch.float64)


def adjusted(logits: Tensor, assumed: Prior, wanted: Prior) -> Tensor:
    """Logits [N, C] for classes as frequent as `wanted`, from logits for classes as frequent as `assumed`."""
    return logits.double() + (wanted.shares.log() - assumed.shares.log())


def expected(logits: Tensor, targets: Tensor, prior: Prior) -> dict[str, float | None]:
    """Figures as they would be on average if the classes of the images were as frequent as a prior says.

    Each image weighs its class's share over the number of its images. Classes without an image are left out, and
    what remains has sum 1. Balanced accuracy and each class's recall depend on no prior.

    Args:
        logits: [N, C], adjusted.
        targets: [N].
        prior: how frequent the classes are.

    Returns:
        ``top1``, ``top5`` (None for five classes or fewer) and ``ece``, fractions.
    """
    support = torch.bincount(targets, minlength=len(prior.shares)).double()
    weights = (prior.shares / support)[targets]
    weights = weights / weights.sum()
    predictions, ranks, confidences = rank(logits, targets)
    hits = (predictions == targets).double()
    bins = torch.bucketize(confidences, torch.linspace(0, 1, ECE_BINS + 1, dtype=torch.float64)[1:-1])
    gaps = torch.bincount(bins, weights=weights * (hits - confidences), minlength=ECE_BINS)
    return {
        "top1": float((weights * hits).sum()),
        "top5": float((weights * (ranks < 5)).sum()) if logits.shape[1] > 5 else None,
        "ece": float(gaps.abs().sum()),
    }
