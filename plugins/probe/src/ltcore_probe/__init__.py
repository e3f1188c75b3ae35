"""Logistic regression on frozen features, with rare classes counted as the recipe asks and its penalty selected."""

from ltcore_probe.functional import BALANCES, Fit, balanced_log_loss, fit, fit_selected, held_apart, spread
from ltcore_probe.method import LinearProbe, LinearProbeOptions

__all__ = [
    "BALANCES",
    "Fit",
    "LinearProbe",
    "LinearProbeOptions",
    "balanced_log_loss",
    "fit",
    "fit_selected",
    "held_apart",
    "spread",
]
