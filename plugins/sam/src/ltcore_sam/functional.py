"""Where the loss near some weights is highest, to first order, and how much of each class's loss is taken there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: Added to the gradient's norm, so that a gradient of zero moves nothing; that of SAM's usual PyTorch code.
TINY = 1e-12


def ascent(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    rho: float,
    adaptive: bool = False,
    eta: float = 0.01,
) -> dict[str, Tensor]:
    """The point at distance rho in the direction in which the loss rises fastest.

    ``w + rho * g / |g|`` (Foret et al. 2021, equation 2), with one norm over all weights. Adaptive, the distance is
    measured in units of each weight's own size ``T``, so that it does not depend on the scale of layers:
    ``w + rho * T^2 g / |T g|`` (Kwon et al. 2021, algorithm 1), where T is ``|w| + eta`` for weights
    and 1 for biases.

    Args:
        weights: by name.
        gradients: of some of them, by name, in the weights' shapes.
        rho: the distance, at least 0; without `adaptive` in the unit of the weights.
        adaptive: whether T is used.
        eta: added to the size of each weight, so that weights of 0 can move.

    Returns:
        New values of those that have a gradient, leaves of a graph of their own that require a gradient.
    """
    with torch.no_grad():
        names, by = list(gradients), list(gradients.values())
        if not names:
            return {}
        at = [weights[name].detach() for name in names]
        if not adaptive:
            moves = torch._foreach_mul(by, _scale(by, rho))
        else:
            sizes = [
                torch.ones_like(weight) if name.endswith("bias") else weight.abs() + eta
                for name, weight in zip(names, at, strict=True)
            ]
            by = list(torch._foreach_mul(by, sizes))
            moves = torch._foreach_mul(torch._foreach_mul(by, sizes), _scale(by, rho))
        there = torch._foreach_add(at, moves)
    return {name: value.requires_grad_() for name, value in zip(names, there, strict=True)}


def _scale(gradients: list[Tensor], rho: float) -> Tensor:
    return rho / (torch.nn.utils.get_total_norm(gradients) + TINY)


def focal_shares(class_counts: Tensor, strength: float, gamma: float) -> Tensor:
    r"""The share of each class's loss that Focal-SAM takes at a distance.

    Li, Xu, Yang, Wang, Zhang, Cao, Huang, "Focal-SAM: Focal Sharpness-Aware Minimization for Long-Tailed
    Classification", ICML 2025, as in its code:

    .. math:: k_c = S \left(1 - \frac{n_c}{\sum_j n_j}\right)^\gamma.

    The step takes the gradient of :math:`\frac1N \sum_i (1 - k_{y_i}) \ell_i` at the weights and that of
    :math:`\frac1N \sum_i k_{y_i} \ell_i` at its own ascent from them.

    Args:
        class_counts: [C], training images per class.
        strength: :math:`S`, at least 0.
        gamma: at least 0; 0 is the same share for every class.

    Returns:
        [C] float32 in [0, `strength`]; computed in float64.
    """
    counts = class_counts.double()
    return (strength * (1 - counts / counts.sum()) ** gamma).float()
