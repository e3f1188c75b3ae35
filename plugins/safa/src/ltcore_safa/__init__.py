"""SAFA: sample-adaptive feature augmentation for ltcore."""

from ltcore_safa.functional import (
    contrastive_loss,
    delta_cycle_loss,
    feature_cycle_loss,
    mode_seeking_loss,
    same_class,
    translate,
)
from ltcore_safa.method import SAFA, SAFAOptions

__all__ = [
    "SAFA",
    "SAFAOptions",
    "contrastive_loss",
    "delta_cycle_loss",
    "feature_cycle_loss",
    "mode_seeking_loss",
    "same_class",
    "translate",
]
