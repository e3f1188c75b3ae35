"""Context-rich minority oversampling (CMO) for ltcore."""

from ltcore_cmo.functional import box, donor_distribution, draw_one_label, paste, symmetric_beta
from ltcore_cmo.method import CMO, CMOOptions

__all__ = [
    "CMO",
    "CMOOptions",
    "box",
    "donor_distribution",
    "draw_one_label",
    "paste",
    "symmetric_beta",
]
