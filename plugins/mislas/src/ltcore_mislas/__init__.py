"""MiSLAS's label-aware smoothing for ltcore."""

from ltcore_mislas.functional import label_aware_smoothing_loss as label_aware_smoothing_loss
from ltcore_mislas.functional import smoothing_factors as smoothing_factors
from ltcore_mislas.method import LabelAwareSmoothing as LabelAwareSmoothing
from ltcore_mislas.method import LabelAwareSmoothingOptions as LabelAwareSmoothingOptions
