"""The VS loss's logits as a pure function; its parts are those of CDT and of logit adjustment."""

from __future__ import annotations

from ltcore_cdt import tempered_logits
from ltcore_logit_adjustment import adjusted_logits
from torch import Tensor


def vs_logits(logits: Tensor, temperature: Tensor, log_prior: Tensor, tau: float = 1.0) -> Tensor:
    r"""Training logits :math:`\Delta_c z_c + \iota_c`; evaluation uses :math:`z_c`.

    Kini, Paraskevas, Oymak, Thrampoulidis, "Label-Imbalanced and Group-Sensitive Classification under
    Overparameterization", NeurIPS 2021, the loss of several classes: the cross-entropy of these logits is the VS loss.
    Their experiments take :math:`1 / \Delta_c = (n_{\max} / n_c)^\gamma`, which are CDT's temperatures (Ye et al.
    2020), and :math:`\iota_c = \tau \log(n_c / \sum_j n_j)`, which is logit adjustment's shift (Menon et al. 2021). So
    with gamma 0 it is the loss of logit adjustment, and with tau 0 that of CDT.

    Args:
        logits: [N, C] float.
        temperature: [C], :math:`1 / \Delta_c`, from `ltcore_cdt.temperatures`.
        log_prior: [C], from `ltcore_logit_adjustment.class_log_prior`.
        tau: strength of what is added.

    Returns:
        [N, C].
    """
    return adjusted_logits(tempered_logits(logits, temperature), log_prior, tau)
