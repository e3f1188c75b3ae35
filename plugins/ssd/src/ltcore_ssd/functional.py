"""SSD's distillation as a pure function."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_label_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    r"""How far the soft head is from the teacher's labels, a value a row: :math:`T^2 KL(p_{teacher} \| p_{student})`.

    Li, Wang, Wu, "Self Supervision to Distillation for Long-Tailed Visual Recognition", ICCV 2021, as in the authors'
    code; the form is that of Hinton, Vinyals, Dean (2015).

    Args:
        student: [N, C] logits.
        teacher: [N, C] logits; no gradient reaches them.
        temperature: T, above 0: what both are divided by.

    Returns:
        [N] in nats.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    wanted, found = ((logits / temperature).log_softmax(1) for logits in (teacher.detach(), student))
    return temperature**2 * F.kl_div(found, wanted, reduction="none", log_target=True).sum(1)
