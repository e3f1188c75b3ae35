"""M2m for ltcore: images of frequent classes, translated to rare ones."""

from ltcore_m2m.functional import Pairs, draw_pairs, replacement_chances, seed_chances, start, translate
from ltcore_m2m.method import M2m, M2mOptions

__all__ = ["M2m", "M2mOptions", "Pairs", "draw_pairs", "replacement_chances", "seed_chances", "start", "translate"]
