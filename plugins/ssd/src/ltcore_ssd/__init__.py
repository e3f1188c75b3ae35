"""SSD for ltcore: self-supervision to distillation."""

from ltcore_ssd.functional import soft_label_loss
from ltcore_ssd.method import SSD, SSDOptions

__all__ = ["SSD", "SSDOptions", "soft_label_loss"]
