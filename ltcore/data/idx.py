"""Reads the idx files of MNIST and its kin, gzipped or plain."""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcore.errors import DataError

_UNSIGNED_BYTE = 8


def find_idx(folder: Path, stem: str) -> Path | None:
    """``folder/stem.gz`` or ``folder/stem``, whichever is a file; None where neither is."""
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)


def read_idx(path: Path, ndim: int) -> NDArray[Any]:
    """The uint8 array in an idx file.

    Args:
        path: the file; gzipped where its name ends in ``.gz``.
        ndim: how many dimensions the array must have.

    Returns:
        uint8, in the shape that the file's head states.

    Raises:
        DataError: the file cannot be read, is no idx file of bytes, or is cut short.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch it again") from error
    head = 4 + 4 * ndim
    if len(raw) < head or raw[:4] != bytes((0, 0, _UNSIGNED_BYTE, ndim)):
        raise DataError(f"{path} is not an idx file of bytes with {ndim} dimensions; fetch it again")
    shape = struct.unpack(f">{ndim}I", raw[4:head])
    if len(raw) - head != prod(shape):
        raise DataError(f"{path} holds {len(raw) - head} bytes where its head promises {prod(shape)}; fetch it again")
    return np.frombuffer(raw, dtype=np.uint8, offset=head).reshape(shape).copy()  # a copy, because bytes are read-only
