"""Gaussian clouded logits as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor


def cloud_sizes(class_counts: Tensor) -> Tensor:
    r"""How large the cloud of each class is beside that of the rarest.

    Li, Cheung, Lu, "Long-tailed Visual Recognition via Gaussian Clouded Logit Adjustment", CVPR 2022, as in its code:

    .. math:: \delta_c = \frac{\log n_{\max} - \log n_c}{\log n_{\max} - \log n_{\min}}.

    Args:
        class_counts: [C], training images per class.

    Returns:
        [C] float32 in [0, 1]: 0 for the most frequent class, 1 for the rarest, zeros where all are as frequent;
        computed in float64.

    Raises:
        ValueError: a class has no training images; the message names it.
    """
    if not bool((class_counts > 0).all()):
        empty = [c for c, count in enumerate(class_counts.tolist()) if not count > 0]
        shown = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        raise ValueError(f"no training images of class {shown}: the size of its cloud, by log n, needs at least one")
    logs = class_counts.double().log()
    sizes = logs.max() - logs
    largest = sizes.max()
    return (sizes / torch.where(largest > 0, largest, 1.0)).float()


def draw_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Noise :math:`\epsilon \sim N(0, 1/3)`, cut off at three standard deviations; as in the authors' code.

    Args:
        like: of the shape, dtype and device of the noise.
        generator: on that device; None for the global one.

    Returns:
        In [-1, 1].
    """
    return torch.empty_like(like).normal_(std=1 / 3, generator=generator).clamp_(-1, 1)


def clouded_logits(logits: Tensor, targets: Tensor, noise: Tensor, clouds: Tensor, margin: float = 0.0) -> Tensor:
    r"""Training logits :math:`z_{ic} - a_c |\epsilon_{ic}| - m \, [c = y_i]`; evaluation uses :math:`z_{ic}`.

    Li et al. 2022, as in its code. With logits :math:`s \cos\theta_c` the clouds are :math:`a_c = s \, \nu \,
    \delta_c`. The cross-entropy of these logits is the GCL loss.

    Args:
        logits: [N, C] float.
        targets: [N] int64 in [0, C).
        noise: [N, C], from `draw_noise`.
        clouds: [C], in units of the logits.
        margin: :math:`m`, in units of the logits.

    Returns:
        [N, C].
    """
    clouded = logits - clouds.to(logits.dtype) * noise.abs()
    if margin == 0:
        return clouded
    return clouded.scatter_add(1, targets[:, None], logits.new_full((len(targets), 1), -margin))


def focal_factor(values: Tensor, gamma: float) -> Tensor:
    r"""The focal factor :math:`(1 - p_{i, y_i})^\gamma` of cross-entropies :math:`-\log p_{i, y_i}`, as a constant.

    In the authors' code, unlike in the focal loss, no gradient passes through it.

    Args:
        values: [N], cross-entropies.
        gamma: exponent, above 0.

    Returns:
        [N] in [0, 1], without gradient.
    """
    # 1 - p_y without the cancellation of 1 - exp(log p_y).
    return (-torch.expm1(-values.detach())) ** gamma
