"""LIFT's own pieces as pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from ltcore_cosine_classifier import unit_rows
from torch import Tensor


def bottleneck_width(num_classes: int, blocks: int = 12) -> int:
    """How wide LIFT makes AdaptFormer's bottlenecks: about as many parameters as the classifier has.

    Shi, Wei, Zhou, Shao, Han, Li, "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts", ICML 2024: the
    classifier has ``C * D`` parameters, bottlenecks of width r beside each of L blocks about ``2 * r * D * L``.

    Args:
        num_classes: C, at least 1.
        blocks: L.

    Returns:
        The largest power of two that is not above ``C / (2 * L)``, at least 1.
    """
    return 1 << max(0, (num_classes // (2 * blocks)).bit_length() - 1)


def prompts(class_names: Sequence[str], template: str) -> list[str]:
    """A sentence for each class, with spaces for the underscores of its name.

    Args:
        class_names: C names.
        template: the sentence, with `{}` where the name comes.
    """
    return [template.replace("{}", name.replace("_", " ")) for name in class_names]


def feature_directions(texts: Tensor, projection: Tensor) -> Tensor:
    """Where features of texts lie among the features of CLIP's image tower, before its projection.

    The logits that CLIP gives are ``<texts, features @ projection>``, which is ``<texts @ projection.T, features>``.

    Args:
        texts: [C, E], features of texts, of any norm.
        projection: [D, E], from the image tower's features to those that CLIP compares.

    Returns:
        [C, D] of norm 1.
    """
    return unit_rows(unit_rows(texts) @ projection.to(texts.dtype).T)
