"""Tau-normalisation (Kang et al. 2020): a trained classifier's weights, divided by a power of their norms."""

from ltcore_tau_norm.functional import tau_norm_scale, tau_normalize
from ltcore_tau_norm.method import TauNorm, TauNormOptions

__all__ = ["TauNorm", "TauNormOptions", "tau_norm_scale", "tau_normalize"]
