"""A classifier of scaled cosines that begins with the means of the classes, as LIFT's does (Shi et al. 2024)."""

from ltcore_cosine_classifier.classifier import CosineClassifier
from ltcore_cosine_classifier.functional import cosine_logits, unit_rows
from ltcore_cosine_classifier.method import Cosine, CosineOptions

__all__ = ["Cosine", "CosineClassifier", "CosineOptions", "cosine_logits", "unit_rows"]
