"""Multinomial logistic regression on features, as pure functions.

What everybody trains on features of a pre-trained network (for instance Kornblith, Shlens, Le, "Do Better ImageNet
Models Transfer Better?", CVPR 2019: L-BFGS, an L2 penalty selected on held-out images), with two ways to make rare
classes count: weights of 1 / count, and the logit-adjusted loss (Menon et al., "Long-tail learning via logit
adjustment", ICLR 2021, eq. 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

#: How rare classes count: not more than others; each class as much as any; by the class's share in the logits.
Balance = Literal["none", "class_balanced", "logit_adjusted"]
BALANCES: tuple[Balance, ...] = get_args(Balance)
#: Penalties that are tried, from the strongest; after so many that were worse in a row nothing weaker is.
PENALTIES = tuple(10.0 ** (-power / 2) for power in range(11))
PATIENCE = 2
#: L-BFGS ends after so many iterations, or where no slope of the mean loss is steeper than this, or while penalties are
#: compared than that.
_ITERATIONS, _SLOPE, _ROUGHLY = 300, 1e-7, 1e-4
#: Of each class one row in so many selects the penalty where no validation images are there.
_ONE_IN = 5


@dataclass(frozen=True)
class Fit:
    """A fitted classifier.

    Attributes:
        weight: [C, D], for features as they came.
        bias: [C].
        l2: the penalty.
        tried: each penalty that was tried with its `balanced_log_loss`; empty where none was selected.
    """

    weight: Tensor
    bias: Tensor
    l2: float
    tried: tuple[tuple[float, float], ...] = ()


def fit(
    features: Tensor, targets: Tensor, num_classes: int, balance: Balance = "logit_adjusted", l2: float = 1e-3
) -> Fit:
    r"""The classifier with the smallest penalised log loss of the rows.

    .. math:: \sum_i s_i \, \mathrm{CE}(W \tilde x_i + b + a, y_i) + \tfrac{l_2}{2} \|W\|^2

    Features are standardised first, :math:`\tilde x = (x - \mu) / \sigma` with the mean of the rows and their `spread`,
    and the result is for features as they came. Weights s sum to 1: alike, or with ``class_balanced`` alike for every
    class. With ``logit_adjusted``, :math:`a_c = \log(n_c / N)`, which the returned bias does not contain; otherwise
    a = 0. scikit-learn's C is 1 / (N l2).

    Args:
        features: [N, D], finite.
        targets: [N] int64.
        num_classes: C. A class without a row gets no better than the penalty leaves it.
        balance: see above.
        l2: the penalty, above 0.

    Raises:
        ValueError: there is no row, or `l2` is not above 0.
    """
    problem = _Problem(features, targets, num_classes, balance)
    roughly = problem.minimum(l2, problem.nothing(), _ROUGHLY, torch.float32)
    return problem.fit(l2, problem.minimum(l2, roughly, _SLOPE, torch.float64))


def fit_selected(
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    balance: Balance,
    held_out: tuple[Tensor, Tensor],
    penalties: Sequence[float] = PENALTIES,
    together: bool = False,
) -> Fit:
    """`fit` with the penalty whose classifier has the smallest `balanced_log_loss` on held-out rows.

    Args:
        features: [N, D].
        targets: [N] int64.
        num_classes: C.
        balance: as in `fit`.
        held_out: features [M, D] and targets [M] that nothing is fitted to.
        penalties: what is tried, in this order; each starts where the one before ended.
        together: whether the held-out rows are fitted to, too, once they have selected.

    Raises:
        ValueError: there is no row to fit or to select with, or a penalty is not above 0.
    """
    if not len(held_out[1]):
        raise ValueError("there is no held-out row to select the penalty with")
    problem = _Problem(features, targets, num_classes, balance)
    at, found, losses = problem.nothing(), {}, {}
    for penalty in penalties:
        at = problem.minimum(penalty, at, _ROUGHLY, torch.float32)
        one = problem.fit(penalty, at)
        found[penalty] = at
        losses[penalty] = balanced_log_loss(held_out[0].float() @ one.weight.T + one.bias, held_out[1])
        best = min(losses, key=losses.__getitem__)
        if len(losses) - 1 - list(losses).index(best) >= PATIENCE:
            break
    if together:
        rows, labels = torch.cat([features, held_out[0]]), torch.cat([targets, held_out[1]])
        problem = _Problem(rows, labels, num_classes, balance)
    exact = problem.fit(best, problem.minimum(best, found[best], _SLOPE, torch.float64))
    return replace(exact, tried=tuple(losses.items()))


def spread(features: Tensor) -> Tensor:
    """What each feature is divided by, [N, D] to [D]: its standard deviation, and a tenth of a usual one in quadrature.

    So a feature that hardly changes stays small: what it says is mostly rounding.
    """
    variance = features.var(0, unbiased=False)
    found: Tensor = (variance + 0.01 * variance.mean()).sqrt().clamp(min=1e-12)
    return found


def balanced_log_loss(logits: Tensor, targets: Tensor) -> float:
    """Log loss in which every class that occurs counts alike: [M, C] and [M] int64."""
    values = cross_entropy(logits.double(), targets, reduction="none")
    counts = torch.bincount(targets, minlength=logits.shape[1]).double()
    weights = 1 / counts[targets]
    return float((weights * values).sum() / weights.sum())


def held_apart(targets: Tensor) -> Tensor:
    """Every fifth row of each class, in their order: [N] bool. A class with fewer than five has none."""
    order = torch.argsort(targets, stable=True)
    counts = torch.bincount(targets)
    starts = counts.cumsum(0) - counts
    places = torch.arange(len(targets), device=targets.device) - starts[targets[order]]
    found = torch.zeros(len(targets), dtype=torch.bool, device=targets.device)
    found[order] = places % _ONE_IN == _ONE_IN - 1
    return found


#: Weight [C, D] and bias [C] for standardised features, float64.
_Point = tuple[Tensor, Tensor]


class _Problem:
    """What is to be minimised, see `fit`."""

    def __init__(self, features: Tensor, targets: Tensor, num_classes: int, balance: Balance) -> None:
        if not len(targets):
            raise ValueError("there is no row to fit a classifier to")
        x = features.detach().float()
        self.mean, self.spread = x.mean(0), spread(x)
        self.x, self.targets = (x - self.mean) / self.spread, targets
        counts = torch.bincount(targets, minlength=num_classes).double()
        weights = 1 / counts[targets] if balance == "class_balanced" else torch.ones_like(targets).double()
        self.weights = weights / weights.sum()
        adjusted = balance == "logit_adjusted"
        self.shift = (counts.clamp(min=1) / len(targets)).log() if adjusted else torch.zeros_like(counts)

    def nothing(self) -> _Point:
        """Where all logits are 0."""
        zeros = self.shift.new_zeros(len(self.shift), self.x.shape[1])
        return zeros, torch.zeros_like(self.shift)

    def fit(self, penalty: float, at: _Point) -> Fit:
        """A point as a classifier of features as they came."""
        weight = at[0] / self.spread
        return Fit(weight.float(), (at[1] - weight @ self.mean.double()).float(), penalty)

    def minimum(self, penalty: float, start: _Point, slope: float, products: torch.dtype) -> _Point:
        """Where no slope is steeper than `slope`, by L-BFGS; its two large products are computed in `products`."""
        if not penalty > 0:
            raise ValueError(f"a penalty must be above 0, not {penalty}")
        weight, bias = (each.clone() for each in start)
        x, rows = self.x.to(products), torch.arange(len(self.targets), device=self.targets.device)
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=_ITERATIONS,
            history_size=20,
            tolerance_grad=slope,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            """Loss and gradients in closed form, without a graph."""
            logs = log_softmax((x @ weight.to(products).T).double() + (bias + self.shift), 1)
            loss = -(self.weights * logs[rows, self.targets]).sum()
            slopes = logs.exp_()
            slopes[rows, self.targets] -= 1
            slopes *= self.weights[:, None]
            weight.grad, bias.grad = (slopes.T.to(products) @ x).double() + penalty * weight, slopes.sum(0)
            return loss + penalty / 2 * weight.square().sum()

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return weight, bias
