"""SAFA: sample-adaptive feature augmentation for ltcore."""

from ltcore_safa.functional import (
    channel_statistics,
    contrastive_loss,
    delta_cycle_loss,
    feature_cycle_loss,
    mode_seeking_loss,
    same_class,
    translate,
)
from ltcore_safa.method import SAFA
from ltcore_safa.options import SAFAOptions

__all__ = [
    "SAFA",
    "SAFAOptions",
    "channel_statistics",
    "contrastive_loss",
    "delta_cycle_loss",
    "feature_cycle_loss",
    "mode_seeking_loss",
    "same_class",
    "translate",
]
