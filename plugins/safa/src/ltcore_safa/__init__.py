"""SAFA: sample-adaptive feature augmentation for ltcore."""

from ltcore_safa.method import SAFA as SAFA

__all__ = ["SAFA"]
