"""Aligned logits and generalised weights as pure functions.

Zhang, Li, Yan, He, Sun, "Distribution Alignment: A Unified Framework for Long-tail Visual Recognition", CVPR 2021,
section 3.3.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

#: How scale, shift and gate come together: as the paper has it, or as the layer that its authors released.
Form = Literal["paper", "released"]
FORMS: tuple[Form, ...] = get_args(Form)


def aligned_logits(logits: Tensor, scale: Tensor, shift: Tensor, confidence: Tensor, form: Form = "paper") -> Tensor:
    r"""Logits that are scaled and shifted class by class, as far as a row's confidence goes.

    .. math::
        \text{paper:} \quad \hat z_c = \sigma (\alpha_c z_c + \beta_c) + (1 - \sigma) z_c; \qquad
        \text{released:} \quad \hat z_c = (1 + \sigma \alpha_c) z_c + \sigma \beta_c

    The second is the first with :math:`\alpha_c + 1` in place of :math:`\alpha_c`.

    Args:
        logits: [N, C] float, :math:`z`.
        scale: [C], :math:`\alpha`.
        shift: [C], :math:`\beta`.
        confidence: [N, 1] in [0, 1], :math:`\sigma`.
        form: see above.

    Returns:
        [N, C]; with ``paper``, scale 1 and shift 0, the values of `logits`, bit for bit.
    """
    # Not the sum of two products as it is printed, which at scale 1 and shift 0 is z only up to rounding.
    extra = scale - 1 if form == "paper" else scale
    return logits + confidence * (extra * logits + shift)


def reweighting(class_counts: Tensor, rho: float) -> Tensor:
    r"""Weights of generalised re-weighting.

    .. math:: w_c \propto (1 / r_c)^\rho, \qquad r_c = n_c / N, \qquad \sum_c w_c = C.

    Weighted cross-entropy is then, up to a constant, the Kullback-Leibler divergence from a reference distribution that
    puts :math:`w_y` on the label of a row and nothing on other classes.

    Args:
        class_counts: [C], training images a class.
        rho: at least 0; 0 weighs all alike, 1 is one over the count.

    Returns:
        [C] float32; computed in float64.

    Raises:
        ValueError: `rho` is negative, or a class has no training images; the message names it.
    """
    if not rho >= 0:
        raise ValueError(f"rho must be at least 0, not {rho}")
    if not bool((class_counts > 0).all()):
        empty = [c for c, count in enumerate(class_counts.tolist()) if not count > 0]
        shown = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        raise ValueError(f"no training images of class {shown}: a weight for it needs at least one")
    counts = class_counts.double()
    weights: Tensor = (counts.min() / counts) ** rho  # at most 1, so that no power overflows
    return (weights * (len(weights) / weights.sum())).to(torch.float32)
