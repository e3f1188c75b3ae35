"""The weights of deferred re-weighting as a pure function."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def effective_number_weights(class_counts: Tensor, beta: float = 0.9999) -> Tensor:
    r"""Weights inverse to the effective number of samples of a class, which DRW defers.

    Cui, Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, equation 9,
    normalised as in its section 4:

    .. math:: w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}}, \qquad \sum_c w_c = C.

    Args:
        class_counts: [C], training images a class.
        beta: in [0, 1): 0 gives ones, towards 1 the weights become proportional to ``1 / n_c``.

    Returns:
        [C] float32; computed in float64, without the cancellation of ``1 - beta ** n`` near beta 1.

    Raises:
        ValueError: `beta` is out of range, or a class has no training images; the message names it.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), not {beta}")
    if not bool((class_counts > 0).all()):
        empty = [c for c, count in enumerate(class_counts.tolist()) if not count > 0]
        shown = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        raise ValueError(f"no training images of class {shown}: a weight for it needs at least one")
    counts = class_counts.double()
    if beta == 0:
        return torch.ones_like(counts, dtype=torch.float32)
    # The numerator is the same for all classes; the normalisation takes it away.
    inverse = -1 / torch.expm1(counts * math.log(beta))
    return (inverse * (len(inverse) / inverse.sum())).float()
