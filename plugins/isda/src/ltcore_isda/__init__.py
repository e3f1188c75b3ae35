"""Semantic augmentation without samples: ISDA (Wang et al. 2019), and MetaSAug (Li et al. 2021), which learns it."""

from ltcore_isda.functional import (
    COVARIANCES,
    ClassStatistics,
    augmented_logits,
    balanced_draw,
    margins,
    seen_features,
    updated,
)
from ltcore_isda.method import ISDA, ISDAOptions, MetaSAug, MetaSAugOptions

__all__ = [
    "COVARIANCES",
    "ISDA",
    "ClassStatistics",
    "ISDAOptions",
    "MetaSAug",
    "MetaSAugOptions",
    "augmented_logits",
    "balanced_draw",
    "margins",
    "seen_features",
    "updated",
]
