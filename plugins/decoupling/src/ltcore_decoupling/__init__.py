"""Decoupled training (Kang et al. 2020): learnable weight scaling and the nearest class mean; cRT is a recipe."""

from ltcore_decoupling.classifiers import CosineClassifier, ScaledClassifier, freeze_parameters
from ltcore_decoupling.functional import class_mean_directions, cosine_logits, scaled_logits
from ltcore_decoupling.method import LWS, NCM, LWSOptions, NCMOptions

__all__ = [
    "LWS",
    "NCM",
    "CosineClassifier",
    "LWSOptions",
    "NCMOptions",
    "ScaledClassifier",
    "class_mean_directions",
    "cosine_logits",
    "freeze_parameters",
    "scaled_logits",
]
