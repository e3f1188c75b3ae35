"""Label-aware smoothing (Zhong et al., MiSLAS: Improving Calibration for Long-Tailed Recognition, CVPR 2021)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

Form = Literal["concave", "linear", "convex"]
Spread = Literal["others", "all"]


def smoothing_factors(class_counts: Tensor, head: float, tail: float, form: Form = "concave") -> Tensor:
    """How much of a label's mass each class gives away.

    With ``t = (n_c - n_min) / (n_max - n_min)``, from 0 at the smallest class to 1 at the largest:

    * concave: ``tail + (head - tail) * sin(pi / 2 * t)``, the default
    * linear: ``tail + (head - tail) * t``
    * convex: ``head + (head - tail) * sin(3 pi / 2 + pi / 2 * t)``

    Where all classes are of one size there is no tail, and each has `head`.

    Args:
        class_counts: training images a class, [C].
        head: smoothing of the largest class, in [0, 1).
        tail: smoothing of the smallest class, in [0, 1).
        form: how it goes from one to the other.

    Returns:
        [C] float32.

    Raises:
        ValueError: `form` is unknown.
    """
    counts = class_counts.double()
    smallest, largest = counts.min(), counts.max()
    if form not in ("concave", "linear", "convex"):
        raise ValueError(f"form should be concave, linear or convex, not '{form}'")
    share = torch.where(largest > smallest, (counts - smallest) / (largest - smallest).clamp(min=1), 1.0)
    if form == "concave":
        factors = tail + (head - tail) * torch.sin(math.pi / 2 * share)
    elif form == "linear":
        factors = tail + (head - tail) * share
    else:
        factors = head + (head - tail) * torch.sin(1.5 * math.pi + math.pi / 2 * share)
    return factors.float()


def label_aware_smoothing_loss(logits: Tensor, targets: Tensor, factors: Tensor, spread: Spread = "others") -> Tensor:
    """Cross-entropy against smoothed labels: one value a sample.

    A sample of class y gives away the mass ``e = factors[y]``:

    * others: to the other classes, so that its target is ``1 - e`` at y and ``e / (C - 1)`` elsewhere, as printed.
    * all: to all classes, its own too, so that its target is ``1 - e + e / C`` at y and ``e / C`` elsewhere, as in the
      authors' code. It equals `others` with ``e * (C - 1) / C``: a tenth less smoothing for ten classes.

    Args:
        logits: [N, C].
        targets: [N] int64.
        factors: [C], see `smoothing_factors`.
        spread: which classes get the mass.

    Returns:
        [N]. Where a sample's factor is 0 it is its cross-entropy.

    Raises:
        ValueError: `spread` is unknown, or there is one class only, which leaves nothing to smooth over.
    """
    classes = logits.shape[1]
    if classes < 2:
        raise ValueError("label smoothing needs two classes or more")
    if spread not in ("others", "all"):
        raise ValueError(f"spread should be others or all, not '{spread}'")
    own = cross_entropy(logits, targets, reduction="none")
    factor = factors[targets]
    everything = -log_softmax(logits, 1).sum(1)
    # The mean -log p of those who get the mass; of the others, it is all classes' sum less the target's.
    mean = everything / classes if spread == "all" else (everything - own) / (classes - 1)
    return own + factor * (mean - own)
