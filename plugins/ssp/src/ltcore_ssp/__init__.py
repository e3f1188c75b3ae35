"""Self-supervised pre-training (SSP) for ltcore: rotation prediction and momentum contrast."""

from ltcore_ssp.functional import balanced_turns, enqueue, follow, momentum_contrast_loss, turned
from ltcore_ssp.method import MoCo, MoCoOptions, RotationPrediction, projection

__all__ = [
    "MoCo",
    "MoCoOptions",
    "RotationPrediction",
    "balanced_turns",
    "enqueue",
    "follow",
    "momentum_contrast_loss",
    "projection",
    "turned",
]
