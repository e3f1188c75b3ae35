"""LADE (Hong et al. 2021): logits that are freed of the label distribution of the training images."""

from ltcore_lade.functional import lader_loss, post_compensated
from ltcore_lade.method import LADE, LADEOptions

__all__ = ["LADE", "LADEOptions", "lader_loss", "post_compensated"]
