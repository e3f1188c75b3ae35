"""GCL (Li et al. 2022): cosines that are lowered by noise while training, more for rare classes."""

from ltcore_gcl.functional import cloud_sizes, clouded_logits, draw_noise, focal_factor
from ltcore_gcl.method import GCL, GCLOptions

__all__ = ["GCL", "GCLOptions", "cloud_sizes", "clouded_logits", "draw_noise", "focal_factor"]
