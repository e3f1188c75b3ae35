"""Deferred re-weighting and re-sampling (Cao et al. 2019): plain training first, re-balanced training at its end."""

from ltcore_deferred.functional import effective_number_weights
from ltcore_deferred.method import DRS, DRW, DRSOptions, DRWOptions

__all__ = ["DRS", "DRW", "DRSOptions", "DRWOptions", "effective_number_weights"]
