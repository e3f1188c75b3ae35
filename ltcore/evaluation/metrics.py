"""Figures of an evaluation, computed once from all logits: accuracy by group, balance and calibration.

Everything is computed in float64 on the CPU, so that the figures of a run do not depend on the device that it ran on.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ltcore.contract.figures import ShotName, shot_groups
from ltcore.contract.result import Figures
from ltcore.errors import RunError

ECE_BINS = 15
"""Equal-width confidence bins of the expected calibration error."""

# Logits are widened to float64 a chunk at a time, of so many: whole, iNaturalist's 24,426 x 8,142 would take 1.6 GB
# a copy, and what does not fit into the processor's cache takes several times as long.
_CHUNK = 2**18


def evaluate_logits(logits: Tensor, targets: Tensor, class_counts: Sequence[int] | Tensor) -> Figures:
    """Compute every figure that a run reports.

    Classes with equal logits are ranked by label, the smaller first, so that top-1 and top-5 are deterministic.

    Args:
        logits: [N, C], N >= 1, floating point, on any device.
        targets: labels in 0..C-1, [N] integers, on any device.
        class_counts: training images per class, [C]; they decide the shot groups and nothing else.

    Returns:
        The figures, ready for JSON; what each is stands in `ltcore.contract.result.Figures`.

    Raises:
        ValueError: shapes do not agree, there is no sample, or a target is not in 0..C-1.
        RunError: a logit is not finite.
    """
    counts = torch.as_tensor(class_counts)
    targets = targets.detach().to("cpu", torch.int64)
    _check(logits, targets, counts)
    num_classes = logits.shape[1]

    predictions, ranks, confidences = rank(logits.detach(), targets)
    hits = predictions == targets
    support = torch.bincount(targets, minlength=num_classes).double()
    predicted = torch.bincount(predictions, minlength=num_classes).double()
    correct = torch.bincount(targets[hits], minlength=num_classes).double()

    tested = support > 0
    recall = correct / support  # nan where a class has no test image; masked by `tested` wherever it is read
    occurs = support + predicted > 0
    f1 = 2 * correct[occurs] / (support + predicted)[occurs]
    groups = shot_groups(counts.tolist())

    def accuracy_of(name: ShotName) -> float | None:
        return _mean(recall[torch.tensor([group == name for group in groups]) & tested])

    return {
        "top1": hits.double().mean().item(),
        "top5": (ranks < 5).double().mean().item() if num_classes > 5 else None,
        "many": accuracy_of("many"),
        "medium": accuracy_of("medium"),
        "few": accuracy_of("few"),
        "balanced_accuracy": recall[tested].mean().item(),
        "macro_f1": f1.mean().item(),
        "per_class_accuracy": [
            value if known else None for value, known in zip(recall.tolist(), tested.tolist(), strict=True)
        ],
        "ece": _calibration_error(confidences, hits),
    }


def _check(logits: Tensor, targets: Tensor, counts: Tensor) -> None:
    """Raise ValueError where the three do not describe the same samples and classes."""
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or counts.shape != logits.shape[1:]:
        raise ValueError(
            f"logits [N, C], targets [N] and class_counts [C] expected, "
            f"got {list(logits.shape)}, {list(targets.shape)} and {list(counts.shape)}"
        )
    if logits.numel() == 0:
        raise ValueError("there is nothing to evaluate: no sample or no class")
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise ValueError(f"targets go from {targets.min()} to {targets.max()}, but there are {logits.shape[1]} classes")


def rank(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted label, the target's rank (0 is the first) and the largest softmax value of every sample, each [N].

    Args:
        logits: [N, C], floating point, on any device.
        targets: labels in 0..C-1, [N] int64, on the CPU.

    Raises:
        RunError: a logit is not finite.
    """
    labels = torch.arange(logits.shape[1])
    predictions, ranks, confidences = [], [], []
    step = math.ceil(_CHUNK / logits.shape[1])
    for rows, wanted in zip(torch.split(logits, step), torch.split(targets, step), strict=True):
        z = rows.to("cpu", torch.float64)
        low, top = z.aminmax(dim=1, keepdim=True)  # a NaN is both
        if not (low.isfinite() & top.isfinite()).all():
            bad = int((~z.isfinite()).any(dim=1).sum())
            raise RunError(f"{bad} of {len(z)} samples have logits that are not finite; the model has diverged")
        own = z.gather(1, wanted[:, None])
        ahead = (z > own) | ((z == own) & (labels < wanted[:, None]))
        ranks.append(ahead.sum(dim=1))
        # `argmax` documents the first of several maxima, which is the tie rule of `ahead`.
        predictions.append(z.argmax(dim=1))
        # With the largest logit subtracted the sum lies in [1, C]: nothing overflows however large the logits are.
        confidences.append(1 / (z - top).exp().sum(dim=1))
    return torch.cat(predictions), torch.cat(ranks), torch.cat(confidences)


def reliability(confidences: Tensor, hits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a reliability diagram draws: samples, right predictions and summed confidence of each bin (low, high].

    Args:
        confidences: largest softmax value of each sample, [N] float64.
        hits: whether its prediction is right, [N] bool.

    Returns:
        Three tensors [`ECE_BINS`] float64.
    """
    edges = torch.linspace(0, 1, ECE_BINS + 1, dtype=torch.float64)
    bins = torch.bucketize(confidences, edges[1:-1])
    weights = (torch.ones_like(confidences), hits.double(), confidences)
    samples, right, summed = (torch.bincount(bins, weights=weight, minlength=ECE_BINS) for weight in weights)
    return samples, right, summed


def _calibration_error(confidences: Tensor, hits: Tensor) -> float:
    """Sum over bins of |accuracy - confidence|, weighted by the bin's share of the samples."""
    _, right, summed = reliability(confidences, hits)
    return ((right - summed).abs().sum() / len(hits)).item()


def _mean(values: Tensor) -> float | None:
    """Mean of [K] values, None for K = 0."""
    return values.mean().item() if len(values) else None
