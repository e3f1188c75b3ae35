"""The augmented loss's logits and the running statistics of classes, as pure functions."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

#: A whole matrix for each class, or its diagonal alone.
Covariance = Literal["full", "diagonal"]
COVARIANCES: tuple[Covariance, ...] = get_args(Covariance)


class ClassStatistics(NamedTuple):
    """Of each class.

    Attributes:
        mean: [C, D].
        covariance: [C, D, D], or [C, D] of variances alone; divided by the count, not by one less.
        seen: [C], how many features were counted.
    """

    mean: Tensor
    covariance: Tensor
    seen: Tensor


def augmented_logits(logits: Tensor, targets: Tensor, weight: Tensor, covariance: Tensor, strength: float) -> Tensor:
    r"""Logits whose cross-entropy bounds the expected loss of features that vary within their class.

    Wang, Pan, Song, Zhang, Wu, Huang, "Implicit Semantic Data Augmentation for Deep Networks", NeurIPS 2019,
    proposition 1: of features drawn from :math:`\mathcal N(x_i, \lambda \Sigma_{y_i})` the expected cross-entropy is at
    most that of

    .. math:: z_{ij} + \tfrac{\lambda}{2} (w_j - w_{y_i})^\top \Sigma_{y_i} (w_j - w_{y_i}).

    Args:
        logits: [N, C] float, :math:`z`.
        targets: [N] int64, :math:`y`.
        weight: [C, D], the classifier's.
        covariance: [C, D, D], or [C, D] of variances alone.
        strength: :math:`\lambda`, at least 0.

    Returns:
        [N, C]; the logit of a row's own class stays as it is.
    """
    of_row, own = covariance[targets], weight[targets]
    if covariance.ndim == 3:
        away = weight - own[:, None]
        spread = (away @ of_row * away).sum(2)
    else:
        # Written out, so that nothing of [N, C, D] is made.
        spread = of_row @ weight.square().T - 2 * (of_row * own) @ weight.T
        spread = spread + (of_row * own.square()).sum(1, keepdim=True)
        spread = spread.scatter(1, targets[:, None], 0.0)  # 0 up to rounding
    return logits + strength / 2 * spread


def updated(statistics: ClassStatistics, features: Tensor, targets: Tensor, counted: Tensor) -> ClassStatistics:
    r"""Statistics of all that was seen before and of one more batch.

    ISDA, section 3.1, as in its code: with m new features of a class, whose mean and covariance are
    :math:`\mu'` and :math:`\Sigma'`, beside n seen before, and :math:`q = m / (m + n)`,

    .. math::
        \Sigma \leftarrow (1 - q) \Sigma + q \Sigma' + q (1 - q) (\mu - \mu')(\mu - \mu')^\top, \qquad
        \mu \leftarrow (1 - q) \mu + q \mu'.

    Args:
        statistics: those so far.
        features: [N, D], without a gradient.
        targets: [N] int64.
        counted: [N] bool; rows that are False are left out.

    Returns:
        The statistics of all features so far, whatever batches they came in; a class without a row keeps its own.
    """
    mean, covariance, seen = statistics
    ones = counted.to(mean)
    new = torch.zeros_like(seen).index_add_(0, targets, ones)
    divisor = new.clamp(min=1)[:, None]
    batch_mean = torch.zeros_like(mean).index_add_(0, targets, features * ones[:, None]) / divisor
    off = (features - batch_mean[targets]) * ones[:, None]
    share = (new / (new + seen).clamp(min=1))[:, None]
    moved = mean - batch_mean
    if covariance.ndim == 3:
        squares, drift = off[:, :, None] * off[:, None], moved[:, :, None] * moved[:, None]
        batch = torch.zeros_like(covariance).index_add_(0, targets, squares) / divisor[..., None]
        q = share[..., None]
    else:
        squares, drift, q = off.square(), moved.square(), share
        batch = torch.zeros_like(covariance).index_add_(0, targets, squares) / divisor
    return ClassStatistics(
        mean=(1 - share) * mean + share * batch_mean,
        covariance=(1 - q) * covariance + q * batch + q * (1 - q) * drift,
        seen=seen + new,
    )


def seen_features(classifier: nn.Module, features: Tensor) -> Tensor:
    """Features as the classifier's weight meets them: divided by their norm, where the classifier does that.

    Args:
        classifier: maps [N, D] to ``x @ weight.T + bias``, or to that times a positive factor a row without the bias.
        features: [N, D].

    Returns:
        [N, D] without a gradient; the features themselves, up to rounding, of a linear classifier.
    """
    with torch.no_grad():
        weight, bias = torch.as_tensor(classifier.weight), getattr(classifier, "bias", None)
        features = features.float()
        products = features @ weight.float().T
        logits = classifier(features).float() - (0 if bias is None else bias)
        size = products.square().sum(1, keepdim=True)
        factor = (logits * products).sum(1, keepdim=True) / size.where(size > 0, 1)
        seen: Tensor = features * factor.where(size > 0, 1)
        return seen


def margins(class_counts: Tensor, largest: float) -> Tensor:
    r"""LDAM's margins, :math:`m_c \propto n_c^{-1/4}` (Cao et al., NeurIPS 2019, equation 13).

    Args:
        class_counts: [C], training images a class.
        largest: the margin of the rarest class.

    Returns:
        [C] float32.
    """
    counts = class_counts.double()
    return (largest * (counts.min() / counts) ** 0.25).float()


def balanced_draw(targets: Tensor, num_classes: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw meta images without repetition, every class as likely as every other.

    Args:
        targets: [M] int64, labels of the meta set.
        num_classes: C.
        size: how many to draw; all M where there are no more.
        generator: draws them, where the labels are.

    Returns:
        [min(size, M)] int64 indices.
    """
    ones = torch.ones(len(targets), device=targets.device)
    counts = torch.zeros(num_classes, device=targets.device).index_add_(0, targets, ones)
    return torch.multinomial(1 / counts[targets], min(size, len(targets)), generator=generator)
