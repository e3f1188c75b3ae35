"""Online feature augmentation (OFA) for ltcore."""

from ltcore_ofa.method import OFA as OFA

__all__ = ["OFA"]
