"""SAFA as pure functions: the augmentation and its losses.

Y. Hong, J. Zhang, Z. Sun, K. Yan: SAFA: Sample-Adaptive Feature Augmentation for Long-Tailed Image Classification, ECCV
2022. Several of its equations are printed garbled; the plugin's README says how each is read.

Letters: N or M rows, D channels, H x W locations. Losses are means over rows and elements, 0-d; reduced precision is
raised to float32. No function loops over rows or waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over rows and locations, without gradient.

    A channel that hardly varies counts as one with a hundredth of the features' root mean square, so that nothing is
    divided by next to nothing.

    Args:
        features: [N, D, H, W].

    Returns:
        Two times [1, D, 1, 1], float32 at least; the second is above 0.
    """
    raised = _raised(features.detach())
    mean = raised.mean((0, 2, 3), keepdim=True)
    deviation = (raised - mean).square().mean((0, 2, 3), keepdim=True).sqrt()
    floor = (0.01 * raised.square().mean().sqrt()).clamp(min=1e-6)
    return mean, torch.maximum(deviation, floor)


def translate(
    delta: Tensor,
    features: Tensor,
    delta_generator: Callable[[Tensor], Tensor],
    generator: Callable[[Tensor], Tensor],
    added: bool,
) -> Tensor:
    """Features moved along a delta in the way that suits each of them: ``G(D([delta, f]) + f)`` (eq. 3).

    Args:
        delta: [N, D, H, W].
        features: [N, D, H, W].
        delta_generator: D, from [N, 2 D, H, W] to [N, D, H, W].
        generator: G, from [N, D, H, W] to [N, D, H, W].
        added: whether G makes the change, which is added to the features, and not the features as a whole (eq. 3).

    Returns:
        [N, D, H, W].
    """
    made = generator(delta_generator(torch.cat([delta, features], 1)) + features)
    return features + made if added else made


def delta_cycle_loss(reconstructed: Tensor, delta: Tensor, even: bool) -> Tensor:
    """How far the deltas found again in augmented features are from the deltas that made them (eq. 4).

    The Euclidean norm of a row's difference, divided by the row's size n = D H W, as the squared norm of
    `feature_cycle_loss` is: the two halves of L_r then keep the proportion of the print, in which this one is some
    1 / sqrt(n) of the other. `even` divides by sqrt(n). The gradient is 0 where the two are equal.

    Args:
        reconstructed: [M, ...].
        delta: [M, ...].
        even: whether an element's difference weighs as in `feature_cycle_loss`, whatever the size.

    Returns:
        0-d, at least 0.
    """
    difference = (_raised(reconstructed) - _raised(delta)).flatten(1)
    norms: Tensor = torch.linalg.vector_norm(difference, dim=1)
    size = difference.shape[1]
    return norms.mean() / (math.sqrt(size) if even else size)


def feature_cycle_loss(reconstructed: Tensor, features: Tensor) -> Tensor:
    """How far head features rebuilt along the reconstructed deltas are from the real ones (eq. 5).

    Args:
        reconstructed: [M, ...].
        features: [M, ...].

    Returns:
        0-d, the mean squared difference.
    """
    return (_raised(reconstructed) - _raised(features)).square().mean()


def mode_seeking_loss(
    first: Tensor, second: Tensor, generated: Tensor, other: Tensor, epsilon: float, constant: bool
) -> Tensor:
    """What two generated features differ too little in, for how much their sources differ (eq. 7).

    ``mean_m |first_m - second_m| / (|generated_m - other_m| + epsilon)`` with the mean absolute difference of a row.

    Args:
        first: [M, ...].
        second: [M, ...], as `first`.
        generated: [M, ...], of any shape of its own.
        other: [M, ...], as `generated`.
        epsilon: above 0, in the features' units; bounds the ratio where the generated features agree.
        constant: whether the sources' distance is a constant. With a gradient the ratio also falls as sources draw
            together, which makes nothing more diverse.

    Returns:
        0-d, at least 0; it falls as the generated features move apart.
    """
    sources = (_raised(first) - _raised(second)).flatten(1).abs().mean(1)
    sources = sources.detach() if constant else sources
    distance = (_raised(generated) - _raised(other)).flatten(1).abs().mean(1)
    return (sources / (distance + epsilon)).mean()


def same_class(
    first: Tensor,
    second: Tensor,
    targets: Tensor,
    partner_targets: Tensor | None = None,
    target_weight: Tensor | None = None,
) -> Tensor:
    """Whether the rows of pairs are of one class (y_c of eq. 6).

    A row of a mixed batch has its label with probability ``target_weight`` and its partner's with the rest; the answer
    is then the probability that labels drawn so agree.

    Args:
        first: [M] int64, the row numbers of one side.
        second: [M] int64, of the other.
        targets: [N] int64.
        partner_targets: [N] int64; None where nothing is mixed.
        target_weight: [N] in [0, 1]; None where nothing is mixed.

    Returns:
        [M] float32 in [0, 1]; 0 or 1 where nothing is mixed.
    """
    if partner_targets is None or target_weight is None:
        return (targets[first] == targets[second]).float()
    weight = target_weight.float()
    labels = ((targets, weight), (partner_targets, 1 - weight))
    total = torch.zeros(len(first), device=targets.device)
    for a, share_a in labels:
        for b, share_b in labels:
            total = total + (a[first] == b[second]) * share_a[first] * share_b[second]
    return total.clamp(0, 1)  # sums of float32 shares may pass 1 by a rounding


def contrastive_loss(logits: Tensor, same: Tensor) -> Tensor:
    """Binary cross-entropy of Q's judgement of pairs (eq. 6).

    Args:
        logits: [M], of "the two rows are of one class".
        same: [M] in [0, 1], see `same_class`.

    Returns:
        0-d, the mean over the pairs.
    """
    return F.binary_cross_entropy_with_logits(_raised(logits), same.to(_raised(logits).dtype))


def _raised(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
