"""Weights of training images, learned from held-out ones: L2RW (Ren et al. 2018), Meta-Weight-Net (Shu et al. 2019)."""

from ltcore_reweighting_net.functional import aligned_weights, balanced_draw, look_ahead, normalised
from ltcore_reweighting_net.method import L2RW, L2RWOptions, MetaWeightNet, MetaWeightNetOptions
from ltcore_reweighting_net.network import WeightNet

__all__ = [
    "L2RW",
    "L2RWOptions",
    "MetaWeightNet",
    "MetaWeightNetOptions",
    "WeightNet",
    "aligned_weights",
    "balanced_draw",
    "look_ahead",
    "normalised",
]
