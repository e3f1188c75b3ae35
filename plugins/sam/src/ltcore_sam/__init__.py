"""Sharpness-aware minimisation: SAM (Foret et al. 2021), ASAM (2021), ImbSAM (2023), Focal-SAM (Li et al. 2025)."""

from ltcore_sam.functional import ascent, focal_shares
from ltcore_sam.method import SAM, FocalSAM, FocalSAMOptions, ImbSAM, ImbSAMOptions, SAMOptions

__all__ = ["SAM", "FocalSAM", "FocalSAMOptions", "ImbSAM", "ImbSAMOptions", "SAMOptions", "ascent", "focal_shares"]
