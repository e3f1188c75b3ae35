"""LFME: a network taught by experts, each of which was trained on one group of classes, for ltcore."""

from ltcore_lfme.functional import (
    class_groups,
    distillation_loss,
    expert_weights,
    group_accuracies,
    group_logits,
    growing_weights,
    start_weights,
)
from ltcore_lfme.group import ClassGroup, ClassGroupOptions, GroupSampler
from ltcore_lfme.method import LFME, LFMEOptions

__all__ = [
    "LFME",
    "ClassGroup",
    "ClassGroupOptions",
    "GroupSampler",
    "LFMEOptions",
    "class_groups",
    "distillation_loss",
    "expert_weights",
    "group_accuracies",
    "group_logits",
    "growing_weights",
    "start_weights",
]
