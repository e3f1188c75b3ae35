"""Intervals of confidence for proportions: how far a figure may be off that comes from few test images.

A proportion of k among n has Wilson's score interval (Wilson 1927). Unlike the usual mean with plus and minus two
standard errors it stays within 0 and 1. It also says something where k is 0 or n, or n is 1, as in rare classes. The
mean of several proportions has the interval that follows from theirs (MOVER: Zou and Donner 2008, Statistics in
Medicine 27, equation 9).
"""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

from ltcore.contract.result import Interval

CONFIDENCE = 0.95


def wilson(successes: Tensor, trials: Tensor, confidence: float = CONFIDENCE) -> Tensor:
    """Wilson's score interval of proportions, without correction for continuity.

    Args:
        successes: k, 0..n, [K].
        trials: n, [K].
        confidence: how often such an interval holds the true proportion, about.

    Returns:
        Lower and upper ends, [K, 2] float64; nan where n is 0.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    k, n = successes.double(), trials.double()
    p = k / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)).sqrt()
    # At k = 0 and k = n the formula gives 0 and 1 up to rounding.
    low = torch.where(k == 0, torch.zeros_like(p), middle - half)
    high = torch.where(k == n, torch.ones_like(p), middle + half)
    return torch.stack([low, high], dim=1).where(n[:, None] > 0, torch.nan)


def mean_of(successes: Tensor, trials: Tensor, confidence: float = CONFIDENCE) -> Interval | None:
    """The interval of the plain mean of independent proportions, such as balanced accuracy.

    Args:
        successes: k of each, [K].
        trials: n of each, [K]; those of 0 are left out.
        confidence: see `wilson`.

    Returns:
        None where there is no proportion.
    """
    known = trials > 0
    if not known.any():
        return None
    k, n = successes[known].double(), trials[known].double()
    p, ends = k / n, wilson(k, n, confidence)
    below, above = ((ends - p[:, None]) ** 2).sum(0).sqrt().tolist()
    mean = p.mean().item()
    return [mean - below / len(p), mean + above / len(p)]
