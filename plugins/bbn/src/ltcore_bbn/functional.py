"""BBN as pure functions: the share of the branches, the re-balancing sampler's classes, and the joined features.

B. Zhou, Q. Cui, X.-S. Wei, Z.-M. Chen: BBN: Bilateral-Branch Network with Cumulative Learning for Long-Tailed Visual
Recognition, CVPR 2020.

Letters: N rows, D features of a branch, C classes. No function waits for the device.
"""

from __future__ import annotations

import math
import random
from typing import Literal

import torch
from torch import Tensor

#: How alpha goes through the epochs, see `branch_share`.
Rule = Literal["parabolic", "linear", "cosine", "increment", "equal", "beta", "separate"]
#: How the re-balancing branch's images are drawn.
Sampling = Literal["reversed", "balanced", "uniform"]


def branch_share(rule: Rule, epoch: int, period: int, beta: float = 0.2, separate: int = 120, seed: int = 0) -> float:
    r"""alpha, the share of the conventional branch (sec. 4.3, and the other rules of table 4).

    With T epochs done of `period`: ``parabolic`` :math:`1 - (T / T_{max})^2`, the paper's own; ``linear``
    :math:`1 - T / T_{max}`; ``cosine`` :math:`\cos(\pi T / 2 T_{max})`; ``increment`` :math:`(T / T_{max})^2`;
    ``equal`` 1/2; ``beta`` drawn from Beta(beta, beta); ``separate`` 1 up to an epoch and 0 from it on.

    Args:
        rule: which one.
        epoch: T, from 0.
        period: T_max, at least `epoch`.
        beta: both parameters of the Beta distribution.
        separate: the epoch.
        seed: what decides the draw of ``beta``.

    Returns:
        In [0, 1].
    """
    done = epoch / period
    if rule == "beta":
        return random.Random(seed).betavariate(beta, beta)
    return {
        "parabolic": 1 - done**2,
        "linear": 1 - done,
        "cosine": math.cos(done * math.pi / 2),
        "increment": done**2,
        "equal": 0.5,
        "separate": float(epoch < separate),
    }[rule]


def rebalancing_distribution(class_counts: Tensor, sampling: Sampling) -> Tensor:
    """How often the re-balancing branch meets each class (sec. 4.2).

    Args:
        class_counts: [C] int64; a class without images is never drawn.
        sampling: ``reversed``, in proportion to ``1 / N_k``, the paper's own; ``balanced``, all equally often;
            ``uniform``, as their images.

    Returns:
        [C] float64, summing to 1.
    """
    counts = class_counts.double()
    power = {"reversed": -1, "balanced": 0, "uniform": 1}[sampling]
    weights = torch.where(counts > 0, counts.clamp(min=1) ** power, 0)
    return weights / weights.sum()


def stack_pairs(images: Tensor, others: Tensor) -> Tensor:
    """Two images of a row as one, the second below the first: two times [N, C, S, S] to [N, C, 2 S, S].

    A square image is one; one that is twice as high as wide is a pair (`ltcore_bbn.BilateralNetwork`).
    """
    return torch.cat([images, others], 2)


def join(features: Tensor, share: float) -> Tensor:
    """Weigh the two branches' features: ``[2 alpha f_c, 2 (1 - alpha) f_r]``; at 1/2 as they are.

    Args:
        features: [N, 2 D], those of the conventional branch first.
        share: alpha.
    """
    conventional, rebalancing = features.chunk(2, 1)
    return torch.cat([2 * share * conventional, 2 * (1 - share) * rebalancing], 1)
