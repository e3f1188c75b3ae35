"""Class weights as pure functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def effective_number_weights(class_counts: Tensor, beta: float = 0.9999) -> Tensor:
    r"""Weights inverse to the effective number of samples of a class.

    Cui, Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, section 4,
    with the normalisation given there:

    .. math:: w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}}, \qquad \sum_c w_c = C.

    Args:
        class_counts: [C], training images a class.
        beta: in [0, 1): 0 gives ones, towards 1 the weights become those of `inverse_frequency_weights` at gamma 1.

    Returns:
        [C] float32; computed in float64, without the cancellation of ``1 - beta ** n`` near beta 1.

    Raises:
        ValueError: `beta` is out of range, or a class has no training images; the message names it.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), not {beta}")
    counts = _counts(class_counts)
    if beta == 0:
        return torch.ones_like(counts, dtype=torch.float32)
    # The numerator is the same for all classes; the normalisation takes it away.
    return _normalised(-1 / torch.expm1(counts * math.log(beta)))


def inverse_frequency_weights(class_counts: Tensor, gamma: float = 0.5) -> Tensor:
    r"""Weights that fall with a power of a class's count.

    The re-weighting baseline of Ye, Chen, Zhan, Chao, "Identifying and Compensating for Feature Deviation in
    Imbalanced Deep Learning" (CDT), 2020, section 5.1, with the strength of its section 3.4:

    .. math:: w_c \propto n_c^{-\gamma}, \qquad \sum_c w_c = C.

    Args:
        class_counts: [C], training images a class.
        gamma: strength, at least 0; 0 gives ones.

    Returns:
        [C] float32; computed in float64.

    Raises:
        ValueError: `gamma` is negative, or a class has no training images; the message names it.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
    counts = _counts(class_counts)
    return _normalised((counts.min() / counts) ** gamma)  # at most 1, so that no power overflows


def _counts(class_counts: Tensor) -> Tensor:
    if not bool((class_counts > 0).all()):
        empty = [c for c, count in enumerate(class_counts.tolist()) if not count > 0]
        shown = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        raise ValueError(f"no training images of class {shown}: a weight for it needs at least one")
    return class_counts.double()


def _normalised(weights: Tensor) -> Tensor:
    return (weights * (len(weights) / weights.sum())).float()
