"""Balanced contrastive learning (BCL) for ltcore."""

from ltcore_bcl.functional import balanced_contrastive_loss
from ltcore_bcl.method import BCL, BCLOptions, projection
from ltcore_bcl.views import draw_crop, strong_view

__all__ = ["BCL", "BCLOptions", "balanced_contrastive_loss", "draw_crop", "projection", "strong_view"]
