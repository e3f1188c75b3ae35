"""The balanced contrastive loss as a pure function."""

from __future__ import annotations

import torch
from torch import Tensor


def balanced_contrastive_loss(
    embeddings: Tensor, targets: Tensor, prototypes: Tensor, temperature: float = 0.1
) -> Tensor:
    r"""Supervised contrastive loss in which every class counts alike in the denominator, and none is missing.

    Zhu, Wang, Chen, Chen, Jiang, "Balanced Contrastive Learning for Long-Tailed Visual Recognition", CVPR 2022,
    as in the authors' code. All rows are anchors. An anchor i is compared with the set A of the other rows and the
    prototypes, of which :math:`P_i` carry its label, and :math:`N_c` is how many of rows and prototypes carry label c:

    .. math::

        D_i = \sum_{j \in A \setminus i} \frac{\exp(z_i \cdot z_j / T)}{N_{y_j} - [j \in P_i]}, \qquad
        L = \frac1M \sum_i \frac{-1}{|P_i|} \sum_{p \in P_i} \left(\frac{z_i \cdot z_p}{T} - \log D_i\right).

    Dividing by the size of the class (class averaging) takes the frequent classes' weight away; the prototypes (class
    complement) stand for the classes that the batch does not have.

    Args:
        embeddings: [M, E] of norm 1; both views of a batch, in any order.
        targets: [M] int64 in [0, C).
        prototypes: [C, E] of norm 1, one for each class.
        temperature: T, above 0.

    Returns:
        0-d, in the dtype of `embeddings`.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    rows, device = len(targets), embeddings.device
    labels = torch.cat([targets, torch.arange(len(prototypes), device=device)])
    similarity = embeddings @ torch.cat([embeddings, prototypes]).T / temperature
    same = targets[:, None] == labels
    itself = torch.eye(rows, len(labels), dtype=torch.bool, device=device)
    positive = (same & ~itself).to(similarity.dtype)
    sizes = 1 + same.sum(0)  # the rows of a label, and its prototype
    shares = (sizes - positive).log()
    denominator = (similarity - shares).masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    values = (positive * (denominator - similarity)).sum(1) / positive.sum(1)
    return values.mean()
