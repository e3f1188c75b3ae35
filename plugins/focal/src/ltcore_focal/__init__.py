"""Focal loss (Lin et al. 2017): samples that are already classified well count less."""

from ltcore_focal.functional import focal_loss
from ltcore_focal.method import Focal, FocalOptions

__all__ = ["Focal", "FocalOptions", "focal_loss"]
