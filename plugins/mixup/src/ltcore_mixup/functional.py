"""Mixup and remix as pure functions, and the Beta distribution that both draw their share from."""

from __future__ import annotations

import torch
from torch import Tensor

#: Cells of the table of the distribution function.
_CELLS = 2**14


def beta_table(alpha: float, cells: int = _CELLS) -> Tensor:
    r"""The distribution function of Beta(alpha, alpha) on its lower half, at the points that `beta_quantile` expects.

    Torch draws from a Beta distribution only with its global generator. With this table a draw is the quantile of one
    uniform number, from any generator and on any device.

    The points are :math:`x_k = \tfrac12 (k/K)^{1/p}` with :math:`p = \min(\alpha, 1)`. In the variable :math:`s = k/K`
    the density is

    .. math:: x^{\alpha - p} (1 - x)^{\alpha - 1} \quad \text{up to a factor},

    which has no pole for any alpha; it is integrated with the midpoint rule, and scaled so that half of the
    distribution lies below 1/2.

    Args:
        alpha: both parameters of the distribution, above 0.
        cells: K.

    Returns:
        [K + 1] float64, from 0 to 1/2, not falling.

    Raises:
        ValueError: `alpha` is not above 0.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, not {alpha}")
    power = min(alpha, 1.0)
    middle = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    x = middle ** (1 / power) / 2
    log_density = torch.xlogy(alpha - power, x) + torch.xlogy(alpha - 1, 1 - x)
    below = (log_density - log_density.max()).exp().cumsum(0)
    return torch.cat([below.new_zeros(1), below / below[-1] / 2])


def beta_quantile(uniform: Tensor, table: Tensor, alpha: float) -> Tensor:
    """Where the distribution function of Beta(alpha, alpha) has the given values.

    Between the points of the table the density is taken to be constant in `beta_table`'s variable. The upper half is
    the lower one mirrored. Nothing in it waits for the device.

    Args:
        uniform: any shape, float64 in [0, 1].
        table: `beta_table` of the same alpha.
        alpha: both parameters of the distribution, above 0.

    Returns:
        As `uniform`, in [0, 1].
    """
    cells = len(table) - 1
    folded = torch.minimum(uniform, 1 - uniform)
    # The first point above the value, so that the cell below it is never one of probability zero.
    upper = torch.searchsorted(table, folded, right=True).clamp(max=cells)
    low, high = table[upper - 1], table[upper]
    position = (upper - 1 + (folded - low) / (high - low)) / cells
    x = position ** (1 / min(alpha, 1.0)) / 2
    return torch.where(uniform < 0.5, x, 1 - x)


def mix_images(images: Tensor, order: Tensor, share: Tensor) -> Tensor:
    r"""Each image blended with another of the batch, :math:`\lambda x_i + (1 - \lambda) x_j`.

    Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018, the equations of its
    introduction; one :math:`\lambda` a batch and partners from a permutation of it, as in their code.

    Args:
        images: [N, C, H, W] float.
        order: [N] int64, a permutation; j for each i.
        share: 0-d float, :math:`\lambda`.

    Returns:
        [N, C, H, W] in the dtype of `images`; at share 1 `images`, bit for bit, where all values are finite.
    """
    return share * images + (1 - share) * images[order]


def remix_share(share: Tensor, counts: Tensor, partner_counts: Tensor, kappa: float = 3.0, tau: float = 0.5) -> Tensor:
    r"""How much of a blend's label is the first image's: all goes to the rarer class if that has enough of the image.

    Chou, Chang, Pan, Wei, Juan, "Remix: Rebalanced Mixup", ECCV 2020 workshops, equation 8:

    .. math::

        \lambda_y = \begin{cases}
            0 & n_i / n_j \ge \kappa \text{ and } \lambda < \tau \\
            1 & n_i / n_j \le 1/\kappa \text{ and } 1 - \lambda < \tau \\
            \lambda & \text{otherwise.}
        \end{cases}

    In both cases the rare class has more than :math:`1 - \tau` of the image, and the rule does not change when i and j
    change places. Were the first condition :math:`\lambda > 1 - \tau` or the second :math:`\lambda < \tau`, the rare
    class would take the labels of the images that show least of it.

    Args:
        share: 0-d or [N] float, :math:`\lambda`, the first image's share of the blend.
        counts: [N], training images of the first image's class.
        partner_counts: [N], of the other's.
        kappa: from which ratio on two classes count as unequal, above 1.
        tau: below which share of a blend the frequent class loses its label, in [0, 1]; 0 gives `share`, bit for bit.

    Returns:
        [N], :math:`\lambda_y` in the dtype of `share`.

    Raises:
        ValueError: `kappa` is not above 1, or `tau` lies outside [0, 1].
    """
    if not kappa > 1:
        raise ValueError(f"kappa must be above 1, not {kappa}")
    if not 0 <= tau <= 1:
        raise ValueError(f"tau must be in [0, 1], not {tau}")
    first, second = counts.double(), partner_counts.double()
    to_partner = (first >= kappa * second) & (share < tau)
    to_first = (second >= kappa * first) & (1 - share < tau)
    return share.expand(len(counts)).masked_fill(to_partner, 0.0).masked_fill(to_first, 1.0)


def draw_one_label(targets: Tensor, partner_targets: Tensor, target_weight: Tensor, uniform: Tensor) -> Tensor:
    """One label for each row that already has two, the first one with the probability of its share.

    A blend of blends has four labels, and a batch has room for two. The loss of a row is linear in the shares of its
    labels, so that over the draws its expectation is the loss of all four.

    Args:
        targets: [N] int64.
        partner_targets: [N] int64.
        target_weight: [N] float, the share of `targets`.
        uniform: [N] float in [0, 1).

    Returns:
        [N] int64.
    """
    return torch.where(uniform < target_weight, targets, partner_targets)
