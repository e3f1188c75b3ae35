"""GLAG: gradual balanced loss, adaptive feature generation and distillation for head classes."""

from ltcore_glag.functional import (
    adapt_confidence,
    class_log_prior,
    class_scores,
    distillation_loss,
    gradual_alpha,
    gradual_logits,
    pooled_scores,
)
from ltcore_glag.gaussians import (
    FeatureBank,
    calibrated_means,
    descend,
    deviations,
    feature_bank,
    ladder,
    support_set,
)
from ltcore_glag.method import AFG, AFGOptions, Distillation, DistillationOptions, GradualOptions, GraLoss

__all__ = [
    "AFG",
    "AFGOptions",
    "Distillation",
    "DistillationOptions",
    "FeatureBank",
    "GraLoss",
    "GradualOptions",
    "adapt_confidence",
    "calibrated_means",
    "class_log_prior",
    "class_scores",
    "descend",
    "deviations",
    "distillation_loss",
    "feature_bank",
    "gradual_alpha",
    "gradual_logits",
    "ladder",
    "pooled_scores",
    "support_set",
]
