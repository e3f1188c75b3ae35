"""Logit adjustment (Menon et al. 2021) and balanced softmax (Ren et al. 2020): logits shifted by class frequency."""

from ltcore_logit_adjustment.functional import (
    adjusted_logits,
    balanced_logits,
    class_log_counts,
    class_log_prior,
    post_hoc_shift,
)
from ltcore_logit_adjustment.method import BalancedSoftmax, LogitAdjustment, LogitAdjustmentOptions

__all__ = [
    "BalancedSoftmax",
    "LogitAdjustment",
    "LogitAdjustmentOptions",
    "adjusted_logits",
    "balanced_logits",
    "class_log_counts",
    "class_log_prior",
    "post_hoc_shift",
]
