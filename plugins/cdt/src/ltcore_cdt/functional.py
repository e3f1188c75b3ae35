"""Class-dependent temperatures and count normalisation as pure functions."""

from __future__ import annotations

from torch import Tensor


def temperatures(class_counts: Tensor, gamma: float = 0.2) -> Tensor:
    r"""The temperature of each class, larger the fewer images it has.

    Ye, Chen, Zhan, Chao, "Identifying and Compensating for Feature Deviation in Imbalanced Deep Learning", 2020,
    section 4:

    .. math:: a_c = (n_{\max} / n_c)^\gamma.

    Args:
        class_counts: [C], training images a class.
        gamma: strength, at least 0; 0 gives ones.

    Returns:
        [C] float32, at least 1, and 1 for the largest class; computed in float64.

    Raises:
        ValueError: `gamma` is negative, or a class has no training images; the message names it.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
    counts = _counts(class_counts)
    ratios: Tensor = (counts.max() / counts) ** gamma
    return ratios.float()


def tempered_logits(logits: Tensor, temperature: Tensor) -> Tensor:
    """Training logits ``z_c / a_c``; evaluation uses ``z``.

    Ye et al. 2020, equation 3: the cross-entropy of these logits is the paper's training objective.

    Args:
        logits: [N, C] float.
        temperature: [C], from `temperatures`.

    Returns:
        [N, C].
    """
    return logits / temperature


def count_scale(class_counts: Tensor, tau: float = 0.5) -> Tensor:
    """``n_c ** -tau``, what the weights of a class are multiplied with after training.

    Ye et al. 2020, equation 5: the prediction is the class with the largest ``w_c / n_c ** tau * f(x)``.

    Args:
        class_counts: [C], training images a class.
        tau: strength, in [0, 1]; 0 gives ones.

    Returns:
        [C] float32, at most 1; computed in float64.

    Raises:
        ValueError: `tau` is out of range, or a class has no training images; the message names it.
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"tau must be in [0, 1], not {tau}")
    scale: Tensor = _counts(class_counts) ** -tau
    return scale.float()


def _counts(class_counts: Tensor) -> Tensor:
    if not bool((class_counts > 0).all()):
        empty = [c for c, count in enumerate(class_counts.tolist()) if not count > 0]
        shown = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        raise ValueError(f"no training images of class {shown}: a ratio of class counts needs at least one")
    return class_counts.double()
