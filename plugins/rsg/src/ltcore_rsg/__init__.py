"""RSG: a generator of rare-class samples for ltcore."""

from ltcore_rsg.functional import (
    centre_loss,
    centre_shares,
    off_centre,
    paired_rows,
    repeats,
    same_class,
    vector_loss,
)
from ltcore_rsg.method import RSG
from ltcore_rsg.options import RSGOptions

__all__ = [
    "RSG",
    "RSGOptions",
    "centre_loss",
    "centre_shares",
    "off_centre",
    "paired_rows",
    "repeats",
    "same_class",
    "vector_loss",
]
