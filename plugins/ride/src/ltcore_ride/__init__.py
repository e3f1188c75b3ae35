"""RIDE (Wang et al. 2021): experts that share their first layers, a loss that keeps them apart, and gates."""

from ltcore_ride.functional import (
    class_temperatures,
    diversity_loss,
    gate_loss,
    gate_targets,
    mean_of_used,
    running_means,
    used_experts,
)
from ltcore_ride.method import RIDE, RIDEOptions, RIDERouter, RIDERouterOptions
from ltcore_ride.network import Experts, split_network
from ltcore_ride.router import RoutedExperts

__all__ = [
    "RIDE",
    "Experts",
    "RIDEOptions",
    "RIDERouter",
    "RIDERouterOptions",
    "RoutedExperts",
    "class_temperatures",
    "diversity_loss",
    "gate_loss",
    "gate_targets",
    "mean_of_used",
    "running_means",
    "split_network",
    "used_experts",
]
