"""LADE's regulariser and the PC softmax as pure functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def lader_loss(logits: Tensor, targets: Tensor, log_prior: Tensor, regularizer: float = 0.1) -> Tensor:
    r"""The regularised Donsker-Varadhan term of LADE (LADER).

    Hong, Han, Choi, Seo, Kim, Chang, "Disentangling Label Distribution for Long-tailed Visual Recognition", CVPR 2021,
    in the form of the authors' code:

    .. math::
        T_c &= \frac{1}{N_c} \sum_{i: y_i = c} z_{ic}, \qquad
        E_c = \log \frac{1}{N} \sum_i \exp\left(z_{ic} + \log \frac{1/C}{p_s(c)}\right), \\
        L &= -\sum_c p_s(c) \left(T_c - E_c - \lambda E_c^2\right).

    At the optimum of :math:`T_c - E_c` the logit of a class is :math:`\log p(x \mid c) / p(x)`, which no longer depends
    on how frequent the classes are.

    Args:
        logits: [N, C] float, before anything is added to them.
        targets: [N] int64 in [0, C). A class without a row has :math:`T_c = 0`, and its :math:`E_c` all the same.
        log_prior: [C], :math:`\log p_s`, from `ltcore_logit_adjustment.class_log_prior`.
        regularizer: :math:`\lambda`, at least 0: how much :math:`E_c` is held near 0.

    Returns:
        0-d.

    Raises:
        ValueError: `regularizer` is negative, or `logits` is not a matrix.
    """
    if not regularizer >= 0:
        raise ValueError(f"regularizer must be at least 0, not {regularizer}")
    if logits.ndim != 2:
        raise ValueError(f"logits must be [N, C], not {list(logits.shape)}")
    rows, classes = logits.shape
    own = F.one_hot(targets, classes).to(logits.dtype)
    first = (logits * own).sum(0) / own.sum(0).clamp(min=1)
    second = torch.logsumexp(logits - log_prior - math.log(classes), 0) - math.log(rows)
    return -(log_prior.exp() * (first - second - regularizer * second.square())).sum()


def post_compensated(logits: Tensor, log_source: Tensor, log_target: Tensor) -> Tensor:
    r"""The PC softmax: logits of a network that was trained on one label distribution, for use on another.

    Hong et al. 2021, post-compensation: :math:`z_c - \log p_s(c) + \log p_t(c)`.

    Args:
        logits: [N, C] float, of plain training.
        log_source: [C], :math:`\log p_s`.
        log_target: [C], :math:`\log p_t`.

    Returns:
        [N, C].
    """
    return logits + (log_target - log_source)
