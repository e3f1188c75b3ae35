"""Temperature and vector scaling (Guo et al. 2017): probabilities that are right as often as they say."""

from ltcore_scaling.functional import class_shares, fit_temperature, fit_vector, log_loss
from ltcore_scaling.method import Temperature, TemperatureOptions, VectorScaling, VectorScalingOptions

__all__ = [
    "Temperature",
    "TemperatureOptions",
    "VectorScaling",
    "VectorScalingOptions",
    "class_shares",
    "fit_temperature",
    "fit_vector",
    "log_loss",
]
