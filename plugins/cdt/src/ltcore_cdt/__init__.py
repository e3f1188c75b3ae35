"""CDT (Ye et al. 2020): class-dependent temperatures in training, classifiers normalised by class counts after it."""

from ltcore_cdt.functional import count_scale, temperatures, tempered_logits
from ltcore_cdt.method import CDT, CDTOptions, CountNorm, CountNormOptions

__all__ = [
    "CDT",
    "CDTOptions",
    "CountNorm",
    "CountNormOptions",
    "count_scale",
    "temperatures",
    "tempered_logits",
]
