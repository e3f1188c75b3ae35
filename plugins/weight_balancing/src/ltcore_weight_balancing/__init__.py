"""Weight balancing (Alshammari et al. 2022): weights of the classifier that stay within a ball."""

from ltcore_weight_balancing.functional import max_norm_radius, project_rows
from ltcore_weight_balancing.method import MaxNorm, MaxNormOptions

__all__ = ["MaxNorm", "MaxNormOptions", "max_norm_radius", "project_rows"]
