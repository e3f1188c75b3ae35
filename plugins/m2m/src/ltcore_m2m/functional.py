"""M2m as pure functions: which rows of a batch are to be replaced, by which others, and the translation.

Kim, Jeong, Shin, "M2m: Imbalanced Classification via Major-to-minor Translation", CVPR 2020; where it leaves a choice,
the code that its authors published decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Images [M, C, H, W] to logits [M, K].
Network = Callable[[Tensor], Tensor]


def replacement_chances(class_counts: Tensor) -> Tensor:
    """How likely a row of each class is offered a translation: ``1 - N_k / N_1`` (equation 7), N_1 the largest class.

    [K] counts to [K] float64 in [0, 1).
    """
    counts = class_counts.double()
    return 1 - counts / counts.max()


def seed_chances(class_counts: Tensor, beta: float) -> Tensor:
    r"""How likely an image of one class may become one of another: 1 - beta ** max(N_k0 - N_k, 0) (equations 5, 6).

    Args:
        class_counts: [K], training images a class.
        beta: in [0, 1); the nearer to 1, the more images a seed's class needs beyond the target's.

    Returns:
        [K, K] float64: rows are target classes k, columns seed classes k0. 0 where k0 is no larger than k.
    """
    counts = class_counts.double()
    beyond = (counts[None, :] - counts[:, None]).clamp(min=0)
    if beta == 0:
        return (beyond > 0).double()
    return -torch.expm1(beyond * math.log(beta))


@dataclass(frozen=True)
class Pairs:
    """Rows of a batch that are to be replaced, each by a translation of another.

    Attributes:
        rows: [M] int64, places of the rows to be replaced, in the batch's order; each at most once.
        seeds: [M] int64, places of the rows that are translated.
    """

    rows: Tensor
    seeds: Tensor


def draw_pairs(targets: Tensor, replaced: Tensor, chances: Tensor, generator: torch.Generator) -> Pairs:
    """Draw the pairs of a batch (algorithm 1, the lines before the translation).

    A row is offered with its class's chance. Its seed is drawn among the batch's rows in proportion to the chances of
    their classes, and kept with that chance once more. An offered row without a possible seed stays as it is.

    Args:
        targets: [B] int64 on the CPU.
        replaced: [K], see `replacement_chances`.
        chances: [K, K], see `seed_chances`.
        generator: draws all of it.
    """
    offered = (torch.rand(len(targets), generator=generator, dtype=torch.float64) < replaced[targets]).nonzero()[:, 0]
    weights = chances[targets[offered]][:, targets]
    possible = weights.sum(1) > 0
    rows, weights = offered[possible], weights[possible]
    if not len(rows):
        return Pairs(rows, rows)
    seeds = torch.multinomial(weights, 1, generator=generator)[:, 0]
    chance = chances[targets[rows], targets[seeds]]
    kept = torch.rand(len(rows), generator=generator, dtype=torch.float64) < chance
    return Pairs(rows[kept], seeds[kept])


def start(images: Tensor, uniform: Tensor, norm: float) -> Tensor:
    """Where a translation begins: the image with a little noise, within black and white.

    The noise of each channel, over all images together, is scaled down to `norm` where it is longer (the published
    code). So an image's own noise is the smaller, the more images there are.

    Args:
        images: [M, C, H, W], black 0 and white 1.
        uniform: [M, C, H, W] in [0, 1).
        norm: the largest Euclidean length of a channel's noise.
    """
    return (images + (uniform - 0.5).renorm(p=2, dim=1, maxnorm=norm)).clamp(0, 1)


def translate(
    images: Tensor,
    targets: Tensor,
    seed_targets: Tensor,
    guide: Network,
    network: Network,
    strength: float,
    step: float,
    steps: int,
) -> Tensor:
    r"""Move images until the guide takes them for the target class (equation 3).

    Each step goes a fixed length against the gradient of :math:`CE(g(x), k) + \lambda f_{k_0}(x)` in each image, within
    black and white.

    Args:
        images: [M, C, H, W], where they begin, black 0 and white 1.
        targets: [M] int64, k.
        seed_targets: [M] int64, k0, what they are images of.
        guide: g, the network that is translated with.
        network: f, the network that trains; it shall not take them for what they were.
        strength: lambda.
        step: length of a step, in pixels between black 0 and white 1.
        steps: how many.

    Returns:
        [M, C, H, W], without a gradient.
    """
    x = images.detach()
    with torch.enable_grad():
        for _ in range(steps):
            x.requires_grad_(True)
            loss = F.cross_entropy(guide(x), targets, reduction="sum")
            if strength:
                loss = loss + strength * network(x).gather(1, seed_targets[:, None]).sum()
            (gradient,) = torch.autograd.grad(loss, x)
            length = gradient.flatten(1).norm(dim=1)[:, None, None, None]
            x = (x.detach() - step * gradient / (length + 1e-10)).clamp(0, 1)
    return x.detach()
