"""Mixup (Zhang et al. 2018) and remix (Chou et al. 2020): training on blends of two images and of their labels."""

from ltcore_mixup.functional import beta_quantile, beta_table, draw_one_label, mix_images, remix_share
from ltcore_mixup.method import Mixup, MixupOptions, Remix, RemixOptions

__all__ = [
    "Mixup",
    "MixupOptions",
    "Remix",
    "RemixOptions",
    "beta_quantile",
    "beta_table",
    "draw_one_label",
    "mix_images",
    "remix_share",
]
