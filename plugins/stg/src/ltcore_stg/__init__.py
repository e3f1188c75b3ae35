"""STG: a statistics generator for tail features, for ltcore."""

from ltcore_stg.generator import StatisticsGenerator as StatisticsGenerator
from ltcore_stg.method import STG as STG
from ltcore_stg.method import STGOptions as STGOptions

__all__ = ["STG", "STGOptions", "StatisticsGenerator"]
