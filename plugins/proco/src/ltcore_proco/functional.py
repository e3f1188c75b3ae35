"""ProCo's distributions of the classes, and the contrast with them, as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

#: Embeddings are at least so wide: below, the expansion of the Bessel functions is not exact enough.
LEAST_WIDTH = 16
#: A class whose embeddings are nearly all the same is as concentrated as this; that of the authors' code.
_MOST_CONCENTRATED = 1e5

#: Debye's polynomials u_1 to u_4 in t ** 2, over t ** k: a divisor, and coefficients from the constant on.
_DEBYE = (
    (24.0, (3.0, -5.0)),
    (1152.0, (81.0, -462.0, 385.0)),
    (414720.0, (30375.0, -369603.0, 765765.0, -425425.0)),
    (39813120.0, (4465125.0, -94121676.0, 349922430.0, -446185740.0, 185910725.0)),
)


def running_means(means: Tensor, seen: Tensor, embeddings: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The mean embedding of each class, of what was seen before and of one more batch.

    Args:
        means: [C, E].
        seen: [C] float, how many embeddings each mean is of; of 0, what it begins at does not count.
        embeddings: [M, E] of norm 1, without a gradient.
        targets: [M] int64 in [0, C).

    Returns:
        Means [C, E] and numbers [C]; a class without a row keeps its own.
    """
    rows = one_hot(targets, len(means)).to(means.dtype)  # a product adds up in a fixed order, on a GPU too
    new = rows.sum(0)
    share = (new / (new + seen).clamp(min=1))[:, None]
    of_batch = rows.T @ embeddings.to(means.dtype) / new.clamp(min=1)[:, None]
    return (1 - share) * means + share * of_batch, seen + new


def concentrations(means: Tensor) -> tuple[Tensor, Tensor]:
    r"""The von Mises-Fisher distribution of each class, from its mean embedding.

    Du, Wang, Song, Huang, "Probabilistic Contrastive Learning for Long-Tailed Visual Recognition", TPAMI 2024, as in
    the authors' code: with :math:`R = \lVert m \rVert` the direction is :math:`\mu = m / R`, and

    .. math:: \kappa = \frac{E R}{1 - R^2}, \qquad \kappa \le 10^5.

    Args:
        means: [C, E], of norm 1 or less.

    Returns:
        Directions [C, E] and concentrations [C].
    """
    length = torch.linalg.vector_norm(means, dim=1)
    kappa = means.shape[1] * length / (1 - length.square()).clamp(min=1e-12)
    return normalize(means, dim=1), kappa.clamp(max=_MOST_CONCENTRATED)


def contrast_logits(embeddings: Tensor, directions: Tensor, kappa: Tensor, temperature: float = 0.1) -> Tensor:
    r"""The logarithm of an embedding's mean similarity with all embeddings that a class may have.

    Du et al. 2024, in closed form: with :math:`\nu = E/2 - 1` and :math:`\tilde\kappa = \lVert \kappa_c \mu_c + z / T
    \rVert`

    .. math:: g_c(z) = \log \mathbb{E}_{z' \sim \mathrm{vMF}(\mu_c, \kappa_c)} \exp(z \cdot z' / T) =
        \log \frac{I_\nu(\tilde\kappa)}{\tilde\kappa^\nu} - \log \frac{I_\nu(\kappa_c)}{\kappa_c^\nu}.

    Here the Bessel functions are Debye's uniform expansion with four terms. With :math:`s = \sqrt{\nu^2 + x^2}`

    .. math:: \log \frac{I_\nu(x)}{x^\nu} \approx s - \nu \log(\nu + s) - \tfrac12 \log(2 \pi s) +
        \log\Big(1 + \sum_k \frac{u_k(\nu / s)}{\nu^k}\Big),

    and the difference of the two is taken term by term, so that float32 is enough for any concentration.

    Args:
        embeddings: [M, E] of norm 1, float32 or better; E is at least `LEAST_WIDTH`.
        directions: [C, E] of norm 1.
        kappa: [C], at least 0.
        temperature: T, above 0.

    Returns:
        [M, C].

    Raises:
        ValueError: the temperature is not above 0, or embeddings are too narrow.
    """
    width = embeddings.shape[1]
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    if width < LEAST_WIDTH:
        raise ValueError(f"embeddings must have at least {LEAST_WIDTH} numbers, not {width}")
    order = width / 2 - 1
    before = (order**2 + kappa.square()).sqrt()
    added = 1 / temperature**2 + 2 / temperature * kappa * (embeddings @ directions.T)
    after = (before.square() + added).clamp(min=order**2).sqrt()
    risen = added / (after + before)  # after - before, without its cancellation
    leading = risen - order * torch.log1p(risen / (order + before)) - torch.log1p(risen / before) / 2
    return leading + torch.log1p(_debye(after, order)) - torch.log1p(_debye(before, order))


def _debye(s: Tensor, order: float) -> Tensor:
    """The terms of Debye's expansion behind its first, 1."""
    square, total = (order / s).square(), torch.zeros_like(s)
    for divisor, coefficients in reversed(_DEBYE):
        polynomial = torch.zeros_like(s)
        for coefficient in reversed(coefficients):
            polynomial = polynomial * square + coefficient
        total = (total + polynomial / divisor) / s
    return total
