r"""FSLwF as pure functions.

S. Gidaris, N. Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018, and the code that its
authors published.

C classes, of which the base classes have many images and the novel ones few; M exemplars, images of classes whose
weights are generated; D the features' width. The weight of a novel class with n exemplars, of unit features
:math:`\bar z_i`, is (equations 5 to 7)

.. math::
    w' = \frac{1}{n} \sum_i \phi_{avg} \odot \bar z_i + \phi_{att} \odot \sum_b a_{ib}\, \bar w_b, \qquad
    a_{ib} = \mathrm{softmax}_b\big(\gamma \cos(Q \bar z_i, k_b)\big) .
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: What a logit of a class becomes that is not there: a probability of 0 in float32, and finite.
_FAR = -1e4


def attended_weights(queries: Tensor, keys: Tensor, directions: Tensor, base: Tensor, scale: Tensor) -> Tensor:
    r"""What the base classes' weights say of each exemplar: :math:`\sum_b a_b \bar w_b`.

    Args:
        queries: [M, D], :math:`Q \bar z_i`, of any norm.
        keys: [C, D], :math:`k_b`, of any norm.
        directions: [C, D], the classes' weights, of any norm.
        base: [C] bool, the classes that are looked at; at least one.
        scale: 0-d, :math:`\gamma`.

    Returns:
        [M, D].
    """
    likeness = scale * F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T
    return likeness.masked_fill(~base, -torch.inf).softmax(1) @ F.normalize(directions, dim=1)


def exemplar_parts(unit: Tensor, attended: Tensor | None, average_gain: Tensor, attention_gain: Tensor) -> Tensor:
    r"""What each exemplar adds to the mean that is its class's weight: :math:`\phi_{avg} \bar z + \phi_{att} a`.

    Args:
        unit: [M, D], features of norm 1.
        attended: [M, D], see `attended_weights`; None for feature averaging alone.
        average_gain: [D], :math:`\phi_{avg}`.
        attention_gain: [D], :math:`\phi_{att}`.

    Returns:
        [M, D].
    """
    averaged = average_gain * unit
    return averaged if attended is None else averaged + attention_gain * attended


def class_means(parts: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Mean row of each class, [M, D] and [M] int64 to [C, D]; 0 for a class without a row."""
    sums = parts.new_zeros(classes, parts.shape[1]).index_add(0, targets, parts)
    return sums / torch.bincount(targets, minlength=classes).clamp(min=1)[:, None]


def generated_logits(
    logits: Tensor, features: Tensor, weights: Tensor, generated: Tensor, present: Tensor, scale: Tensor | float
) -> Tensor:
    """Logits of an episode: those of generated classes anew, and none of classes that are not there.

    Args:
        logits: [N, C], of the classifier.
        features: [N, D], of any norm.
        weights: [G, D], generated, of any norm.
        generated: [G] int64, the classes whose weights they are.
        present: [C] bool, which classes the episode has, the generated ones among them.
        scale: what cosines are multiplied with.

    Returns:
        [N, C]; nothing of the generated classes' own logits is left, so no gradient reaches the classifier's weights.
    """
    anew = scale * F.normalize(features, dim=1) @ F.normalize(weights, dim=1).T
    return logits.masked_fill(~present, _FAR).index_copy(1, generated, anew.to(logits.dtype))


def draw_exemplars(targets: Tensor, batch: Tensor, classes: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Training images of some classes that a batch does not have, without replacement as far as there are enough.

    Args:
        targets: [N] int64, of the training split.
        batch: [B] int64, indices of images that are not to be drawn; they come last.
        classes: [G] int64, each with at least one image.
        number: n, how many of each class; a class with fewer images has some of them again.
        generator: on the CPU.

    Returns:
        [G * n] int64, class by class.
    """
    keys = torch.rand(len(targets), generator=generator)
    keys[batch] += 1
    order = torch.argsort(keys)
    order = order[torch.argsort(targets[order], stable=True)]  # by class, and within it by key
    counts = torch.bincount(targets)
    start = torch.cumsum(counts, 0) - counts
    ranks = torch.arange(number) % counts[classes, None]
    return order[start[classes, None] + ranks].flatten()
