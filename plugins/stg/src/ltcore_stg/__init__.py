"""STG: a statistics generator for tail features, for ltcore."""

from ltcore_stg.functional import (
    augmented,
    class_strength,
    cycled,
    divergences,
    last_alike,
    partly_kept,
    places_to_fill,
    smoothed,
    statistics_loss,
    transformation_statistics,
)
from ltcore_stg.generator import StatisticsGenerator
from ltcore_stg.method import STG, STGOptions

__all__ = [
    "STG",
    "STGOptions",
    "StatisticsGenerator",
    "augmented",
    "class_strength",
    "cycled",
    "divergences",
    "last_alike",
    "partly_kept",
    "places_to_fill",
    "smoothed",
    "statistics_loss",
    "transformation_statistics",
]
