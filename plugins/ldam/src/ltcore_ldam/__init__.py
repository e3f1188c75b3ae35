"""LDAM (Cao et al. 2019): margins that grow as classes get rarer, on a normalised classifier."""

from ltcore_ldam.classifier import NormalisedClassifier
from ltcore_ldam.functional import cosine_logits, ldam_margins, subtract_margin, unit_rows
from ltcore_ldam.method import LDAM, LDAMOptions

__all__ = [
    "LDAM",
    "LDAMOptions",
    "NormalisedClassifier",
    "cosine_logits",
    "ldam_margins",
    "subtract_margin",
    "unit_rows",
]
