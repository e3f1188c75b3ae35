"""Where the loss near some weights is highest, to first order."""

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
