"""GLAG's schedule, losses and confidence as pure functions; the generator's Gaussians are in `gaussians`.

Zhang, Xiang, "Long-Tailed Classification with Gradual Balanced Loss and Adaptive Feature Generation" (GLAG).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Form = Literal["convex", "linear", "concave"]
Score = Literal["accuracy", "probability"]

#: Scores that differ by less differ by rounding: the means are sums of up to some thousand values in float32.
_SAME = 1e-6


def gradual_alpha(epoch: int, epochs: int, scale: float = 1.0, base: float = 2.0, form: Form = "convex") -> float:
    r"""Equation 3: the strength of an epoch, from 0 in the first to ``scale * (base - 1)`` in the last.

    With :math:`t = T / T_{max}`, T the epoch counted from 0 and :math:`T_{max}` the last one's number:

    - ``convex``: :math:`s (c^t - 1)`, as printed.
    - ``linear``: :math:`s (c - 1) t`.
    - ``concave``: :math:`s c (1 - c^{-t})`, which is equation 3 with base 1/c and a scale that ends at the same value.

    Args:
        epoch: T, from 0 to `epochs` - 1; below 0 counts as 0.
        epochs: epochs in the stage. A stage of one epoch has only the beginning, 0.
        scale: s, at least 0.
        base: c, above 1.
        form: one of the three.

    Raises:
        ValueError: `base` is not above 1, or the form is unknown.
    """
    if not base > 1:
        raise ValueError(f"base should be above 1, not {base}")
    t = max(epoch, 0) / max(epochs - 1, 1)
    if form == "convex":
        return scale * (math.pow(base, t) - 1)
    if form == "linear":
        return scale * (base - 1) * t
    if form == "concave":
        return scale * base * (1 - math.pow(base, -t))
    raise ValueError(f"unknown form '{form}'; there is convex, linear and concave")


def class_log_prior(class_counts: Tensor) -> Tensor:
    """``log p_c`` with ``p_c = n_c / sum(n)``: [C] counts to [C] float32 in nats, computed in float64.

    Raises:
        ValueError: a class has no training images; the message names it.
    """
    if not bool((class_counts > 0).all()):
        empty = [c for c, count in enumerate(class_counts.tolist()) if not count > 0]
        shown = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        raise ValueError(f"no training images of class {shown}: the logarithm of a class frequency needs at least one")
    counts = class_counts.double()
    return (counts.log() - counts.sum().log()).float()


def gradual_logits(logits: Tensor, log_prior: Tensor, alpha: float) -> Tensor:
    r"""Equation 4: :math:`z + \alpha \log p`, whose cross-entropy is the gradual balanced loss.

    Args:
        logits: [N, C].
        log_prior: [C].
        alpha: from `gradual_alpha`; 0 returns `logits` itself.
    """
    return logits if alpha == 0 else torch.add(logits, log_prior, alpha=alpha)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""The KD term of equation 11, a value a sample: :math:`\tau^2 KL(p_1 \| p_2)`.

    The paper names neither form nor temperature. This is Hinton, Vinyals and Dean's (2015): the teacher's distribution
    is the target, and :math:`\tau^2` keeps the size of the gradient whatever the temperature.

    Args:
        student: [N, C] logits of the stage-two model.
        teacher: [N, C] logits of the stage-one model.
        temperature: what both are divided by.

    Returns:
        [N] in nats, at least 0 up to rounding, and 0 where both agree.
    """
    ours = F.log_softmax(student / temperature, dim=1)
    theirs = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1) * temperature**2


def class_scores(logits: Tensor, targets: Tensor, score: Score) -> Tensor:
    """How well each image is recognised, [M] float64 in [0, 1].

    Args:
        logits: [M, C].
        targets: [M] int64.
        score: ``accuracy``: 1 where the largest logit is the target's; ``probability``: the target's softmax. The mean
            of the latter is the accuracy that drawing guesses from the softmax would have, and one image can move it.
    """
    if score == "accuracy":
        return (logits.argmax(1) == targets).double()
    return F.softmax(logits.double(), dim=1).gather(1, targets[:, None])[:, 0]


def pooled_scores(scores: Tensor, targets: Tensor, pools: Tensor) -> Tensor:
    """The mean score over the images of each class and of those that are pooled with it.

    Args:
        scores: [M] float64.
        targets: [M] int64.
        pools: [C, J] int64; for each class, the classes whose images are counted. One that is named twice counts twice.

    Returns:
        [C] float64; NaN where none of them has an image.
    """
    sums = torch.bincount(targets, weights=scores, minlength=len(pools))
    images = torch.bincount(targets, minlength=len(pools))
    return sums[pools].sum(1) / images[pools].sum(1)


def adapt_confidence(confidence: Tensor, score: Tensor, previous: Tensor, step: float) -> Tensor:
    """Confidence after generation epochs (section 4.2): up where the class's score rose, down where it fell.

    The paper gives no amount.

    Args:
        confidence: [C] in [0, 1].
        score: [C], after them; NaN where there is nothing to measure on.
        previous: [C], before them.
        step: by how much.

    Returns:
        [C] in [0, 1]; unchanged where the score is the same up to rounding, or unknown.
    """
    change = (score - previous).nan_to_num(0.0)
    direction = torch.where(change.abs() > _SAME, change.sign(), 0.0)
    return (confidence + step * direction.to(confidence.dtype)).clamp(0, 1)
