"""MiSLAS's label-aware smoothing for ltcore."""

from ltcore_mislas.functional import label_aware_smoothing_loss, smoothing_factors
from ltcore_mislas.method import LabelAwareSmoothing, LabelAwareSmoothingOptions

__all__ = ["LabelAwareSmoothing", "LabelAwareSmoothingOptions", "label_aware_smoothing_loss", "smoothing_factors"]
