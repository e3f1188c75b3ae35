"""CUDA (Ahn et al. 2023): each class is augmented as strongly as the network has learnt to bear."""

from ltcore_autoaugment_by_class.functional import draw_test, next_levels, passed
from ltcore_autoaugment_by_class.method import AutoAugmentByClass, AutoAugmentByClassOptions
from ltcore_autoaugment_by_class.operations import OPERATIONS, Augmentation, Operation, cut_square, transformed

__all__ = [
    "OPERATIONS",
    "Augmentation",
    "AutoAugmentByClass",
    "AutoAugmentByClassOptions",
    "Operation",
    "cut_square",
    "draw_test",
    "next_levels",
    "passed",
    "transformed",
]
