"""Reads the idx files of MNIST and its kin, gzipped or plain."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcore.errors import DataError

_UNSIGNED_BYTE = 8
_PIECE = 1 << 20


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
    start = 4 + 4 * ndim
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            head = file.read(start)
            if len(head) < start or head[:4] != bytes((0, 0, _UNSIGNED_BYTE, ndim)):
                raise DataError(f"{path} is not an idx file of bytes with {ndim} dimensions; fetch it again")
            shape = struct.unpack(f">{ndim}I", head[4:])
            content = b"".join(_pieces(file, prod(shape) + 1))  # not to its end, which a few bytes can put far away
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch it again") from error
    if len(content) != prod(shape):
        held = f"{len(content)} bytes" if len(content) < prod(shape) else "more bytes"
        raise DataError(f"{path} holds {held} where its head promises {prod(shape)}; fetch it again")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()  # a copy, because bytes are read-only


def _pieces(file: BufferedIOBase, most: int) -> Iterator[bytes]:
    """What a file holds, up to `most` bytes: a head can promise more than any memory has."""
    while most > 0 and (piece := file.read(min(most, _PIECE))):
        most -= len(piece)
        yield piece
