"""Online feature augmentation (OFA) for ltcore."""

from ltcore_ofa.functional import (
    class_activation_maps,
    confusing_classes,
    draw_locations,
    fuse_pooled,
    fuse_spatial,
    generic_mask,
    head_classes,
    masked_mean,
    most_confusing,
    specific_mask,
)
from ltcore_ofa.method import OFA, OFAOptions

__all__ = [
    "OFA",
    "OFAOptions",
    "class_activation_maps",
    "confusing_classes",
    "draw_locations",
    "fuse_pooled",
    "fuse_spatial",
    "generic_mask",
    "head_classes",
    "masked_mean",
    "most_confusing",
    "specific_mask",
]
