"""Temperature and vector scaling as pure functions.

Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2: of matrix scaling,
``W z + b``, vector scaling keeps the diagonal of W, and temperature scaling one number for all classes. Each is fitted
to the log loss on held-out images, which is convex in it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

#: Between these the inverse temperature is looked for.
SMALLEST, LARGEST = 1e-3, 1e3
_HALVINGS = 60
_ROWS = 4096


def class_shares(targets: Tensor, num_classes: int) -> Tensor:
    """Weights by which every class that occurs counts as much: 1 / (its rows x their classes).

    Args:
        targets: [M] int64.
        num_classes: C.

    Returns:
        [M] float64, of sum 1.
    """
    counts = torch.bincount(targets, minlength=num_classes).double()
    weights = 1 / counts[targets]
    return weights / weights.sum()


def log_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> float:
    """Mean log loss of logits [M, C] for targets [M]; weighted by [M], of sum 1."""
    values = cross_entropy(logits.double(), targets, reduction="none")
    return float(values.mean() if weights is None else (weights * values).sum())


def fit_temperature(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> float:
    """The temperature T for which ``logits / T`` has the smallest log loss.

    In 1 / T the log loss is convex, and its derivative is the mean of the logit that is expected under the
    probabilities less the target's own. Where that has one sign throughout (every row is right, or the classifier
    knows nothing), T is the end of what is looked at, 0.001 or 1000.

    Args:
        logits: [M, C], M >= 1, finite.
        targets: [M] int64.
        weights: [M] float64 of sum 1; None: all rows count alike.

    Raises:
        ValueError: there is no row.
    """
    if not len(targets):
        raise ValueError("there is no row to fit a temperature to")
    weights = torch.full((len(targets),), 1 / len(targets), dtype=torch.float64) if weights is None else weights.cpu()

    def slope(inverse: float) -> float:
        total = 0.0
        parts = (torch.split(each, _ROWS) for each in (logits, targets, weights))
        for rows, wanted, weight in zip(*parts, strict=True):
            z = rows.double()
            expected = ((inverse * z).softmax(1) * z).sum(1) - z.gather(1, wanted[:, None])[:, 0]
            total += float((weight.to(z.device) * expected).sum())
        return total

    low, high = SMALLEST, LARGEST
    if slope(low) >= 0:
        return 1 / low
    if slope(high) <= 0:
        return 1 / high
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)


def fit_vector(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, l2: float = 0.0
) -> tuple[Tensor, Tensor]:
    """A factor and a summand for each class, for which ``scale * logits + shift`` has the smallest log loss.

    The loss is that mean plus ``l2 / 2`` times the mean over classes of ``(scale - 1)**2 + shift**2``, fitted by L-BFGS
    in float64 from scale 1 and shift 0. A common summand of all classes changes no probability, and the mean of `shift`
    is 0.

    Args:
        logits: [M, C], finite.
        targets: [M] int64.
        weights: [M] float64 of sum 1; None: all rows count alike.
        l2: how much leaving the logits as they are is preferred, at least 0. Without it a class of which there is
            no row would never be predicted.

    Returns:
        scale [C] and shift [C], float64.

    Raises:
        ValueError: `l2` is negative; or it is 0, and a class has no row.
    """
    if not l2 >= 0:
        raise ValueError(f"l2 must be at least 0, not {l2}")
    counts = torch.bincount(targets, minlength=logits.shape[1])
    if l2 == 0 and bool((counts == 0).any()):
        raise ValueError("a class without a row needs l2 above 0; it would never be predicted")
    z = logits.detach().double()
    scale, shift = (torch.full_like(z[0], value).requires_grad_() for value in (1.0, 0.0))
    optimizer = torch.optim.LBFGS(
        [scale, shift], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        values = cross_entropy(scale * z + shift, targets, reduction="none")
        loss = values.mean() if weights is None else (weights.to(values) * values).sum()
        loss = loss + l2 / 2 * ((scale - 1) ** 2 + shift**2).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return scale.detach(), shift.detach() - shift.detach().mean()
