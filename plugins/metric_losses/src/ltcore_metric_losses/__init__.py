"""Losses on the distances between features: range loss and lifted structure loss; batches of several images a class."""

from ltcore_metric_losses.functional import (
    lifted_structure_loss,
    range_between,
    range_within,
    squared_distances,
)
from ltcore_metric_losses.method import (
    LiftedStructure,
    LiftedStructureOptions,
    MPerClass,
    MPerClassOptions,
    RangeLoss,
    RangeLossOptions,
)
from ltcore_metric_losses.sampler import MPerClassSampler

__all__ = [
    "LiftedStructure",
    "LiftedStructureOptions",
    "MPerClass",
    "MPerClassOptions",
    "MPerClassSampler",
    "RangeLoss",
    "RangeLossOptions",
    "lifted_structure_loss",
    "range_between",
    "range_within",
    "squared_distances",
]
