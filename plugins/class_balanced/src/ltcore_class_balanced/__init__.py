"""Class weights: by the effective number of samples (Cui et al. 2019), and by inverse frequency."""

from ltcore_class_balanced.functional import effective_number_weights, inverse_frequency_weights
from ltcore_class_balanced.method import (
    ClassBalanced,
    ClassBalancedOptions,
    InverseFrequency,
    InverseFrequencyOptions,
)

__all__ = [
    "ClassBalanced",
    "ClassBalancedOptions",
    "InverseFrequency",
    "InverseFrequencyOptions",
    "effective_number_weights",
    "inverse_frequency_weights",
]
