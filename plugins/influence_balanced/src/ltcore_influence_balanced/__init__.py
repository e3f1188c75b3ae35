"""Influence-balanced loss (Park et al. 2021): samples count less the more they move the classifier."""

from ltcore_influence_balanced.functional import class_factors, influence, influence_balanced_loss
from ltcore_influence_balanced.method import InfluenceBalanced, InfluenceBalancedOptions

__all__ = [
    "InfluenceBalanced",
    "InfluenceBalancedOptions",
    "class_factors",
    "influence",
    "influence_balanced_loss",
]
