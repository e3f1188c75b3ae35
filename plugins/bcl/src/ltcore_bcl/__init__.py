"""Balanced contrastive learning (BCL) for ltcore."""

from ltcore_bcl.functional import balanced_contrastive_loss
from ltcore_bcl.method import BCL, BCLOptions, projection

__all__ = ["BCL", "BCLOptions", "balanced_contrastive_loss", "projection"]
