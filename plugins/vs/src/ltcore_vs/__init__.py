"""VS loss (Kini et al. 2021): logits that are divided and shifted by class while training."""

from ltcore_vs.functional import vs_logits
from ltcore_vs.method import VS, VSOptions

__all__ = ["VS", "VSOptions", "vs_logits"]
