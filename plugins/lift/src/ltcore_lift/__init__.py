"""LIFT (Shi et al. 2024): a pre-trained vision transformer is adapted to a long tail by few parameters."""

from ltcore_lift.functional import bottleneck_width, feature_directions, prompts
from ltcore_lift.method import Lift, LiftOptions
from ltcore_lift.text import text_directions

__all__ = ["Lift", "LiftOptions", "bottleneck_width", "feature_directions", "prompts", "text_directions"]
