"""A loss of its own for each expert of a network: SADE (Zhang et al. 2022) and BalPoE (Aimar et al. 2023)."""

from ltcore_expert_losses.functional import balpoe_shifts, log_prior, reversed_log_prior, sade_shifts, shifted_logits
from ltcore_expert_losses.method import SADE, BalPoE, BalPoEOptions, SADEOptions

__all__ = [
    "SADE",
    "BalPoE",
    "BalPoEOptions",
    "SADEOptions",
    "balpoe_shifts",
    "log_prior",
    "reversed_log_prior",
    "sade_shifts",
    "shifted_logits",
]
