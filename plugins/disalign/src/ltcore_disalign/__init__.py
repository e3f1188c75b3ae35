"""Distribution alignment (DisAlign, Zhang et al. 2021): logits of a frozen classifier, calibrated behind a gate."""

from ltcore_disalign.classifier import AlignedClassifier
from ltcore_disalign.functional import FORMS, aligned_logits, reweighting
from ltcore_disalign.method import DisAlign, DisAlignOptions

__all__ = ["FORMS", "AlignedClassifier", "DisAlign", "DisAlignOptions", "aligned_logits", "reweighting"]
