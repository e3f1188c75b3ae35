"""ProCo (Du et al. 2024): views contrasted with a von Mises-Fisher distribution for each class."""

from ltcore_proco.functional import LEAST_WIDTH, concentrations, contrast_logits, running_means
from ltcore_proco.method import ProCo, ProCoOptions

__all__ = ["LEAST_WIDTH", "ProCo", "ProCoOptions", "concentrations", "contrast_logits", "running_means"]
