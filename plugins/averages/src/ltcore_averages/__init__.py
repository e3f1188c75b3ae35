"""Averages of the weights: exponential over steps (EMA), or equal over epochs (SWA, Izmailov et al. 2018)."""

from ltcore_averages.functional import average_into, ema_share, put_back, swa_share
from ltcore_averages.method import EMA, SWA, EMAOptions, SWAOptions

__all__ = ["EMA", "SWA", "EMAOptions", "SWAOptions", "average_into", "ema_share", "put_back", "swa_share"]
