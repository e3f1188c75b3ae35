"""Memory that training has freed, given back to the system before an evaluation takes more."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any


def give_back() -> None:
    """Hand freed memory back, where the C library has a function for it (glibc); a tenth of a second at most.

    What a step frees stays with the process, in pieces too small for an evaluation's larger batches, which would be
    held beside it.
    """
    if (trim := _trim()) is not None:
        trim(0)


@functools.cache
def _trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
