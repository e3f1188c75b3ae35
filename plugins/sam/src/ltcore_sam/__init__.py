"""Sharpness-aware minimisation: SAM (Foret et al. 2021), ASAM (Kwon et al. 2021), ImbSAM (Zhou et al. 2023)."""

from ltcore_sam.functional import ascent
from ltcore_sam.method import SAM, ImbSAM, ImbSAMOptions, SAMOptions

__all__ = ["SAM", "ImbSAM", "ImbSAMOptions", "SAMOptions", "ascent"]
