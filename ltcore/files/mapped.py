"""One large tensor in a file: written row by row, and looked at where it lies, so that it is never whole in memory.

A file is a page of text in JSON, padded with spaces, and the rows behind it. The text says what the file is of (`key`),
how its rows lie, and the sum of their bytes (CRC-32). That is written last, so a file without it is no file.
"""

from __future__ import annotations

import json
import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ltcore.errors import LtcoreError, RunError
from ltcore.files.writing import RESUME, replacing
from ltcore.untrusted import parse_json

#: How such files are called.
SUFFIX = ".features"
_HEAD = 4096  # bytes, a page: what is mapped behind it is aligned for every type
_AT_ONCE = 1 << 24  # bytes that are looked at together
_TYPES = {
    str(kind).removeprefix("torch."): kind for kind in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}


class Damaged(LtcoreError):
    """A file is not what was written."""


class Rows:
    """Takes the rows of a file that is being written.

    Args:
        file: at its beginning.
        dtype: what numbers are written as.
    """

    def __init__(self, file: BinaryIO, dtype: torch.dtype) -> None:
        self._file, self._dtype = file, dtype
        self._count, self._sum = 0, 0
        self._row: tuple[int, ...] = ()
        file.write(b" " * _HEAD)

    def add(self, rows: Tensor) -> None:
        """Write some more rows, [R, ...] on any device.

        Raises:
            OSError: the system refuses.
        """
        lying = rows.detach().to("cpu", self._dtype).contiguous()
        content = lying.view(torch.uint8).numpy()
        self._file.write(content.data)
        self._sum = zlib.crc32(content.data, self._sum)
        self._count, self._row = self._count + len(rows), tuple(rows.shape[1:])

    def end(self, key: str, notes: dict[str, bool]) -> None:
        """Say what the file is.

        Args:
            key: of what it is.
            notes: what else a reader is told.

        Raises:
            OSError: the system refuses.
        """
        told = {
            "key": key,
            "dtype": str(self._dtype).removeprefix("torch."),
            "shape": [self._count, *self._row],
            "crc32": self._sum,
            "notes": notes,
        }
        self._file.seek(0)
        self._file.write(json.dumps(told).encode().ljust(_HEAD))


def refuse_too_large(path: Path, size: int) -> None:
    """Say before hours are spent on it that a file of so many bytes of rows has no room.

    Raises:
        RunError: it has none.
    """
    free = shutil.disk_usage(path.parent).free
    if size + _HEAD > free:
        raise RunError(
            f"{path} would have {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; free some space, cache "
            "fewer views or in half precision (cache_precision), or put the run elsewhere with --out"
        )


@contextmanager
def written(path: Path, dtype: torch.dtype, otherwise: str = RESUME) -> Iterator[Rows]:
    """A file whose rows the block writes; it gets its name once the block has ended (`ltcore.files.writing.replacing`).

    Raises:
        RunError: it cannot be written.
    """
    with replacing(path, otherwise) as file:
        yield Rows(file, dtype)


def opened(path: Path, key: str, rows: int, whole: bool = False) -> tuple[Tensor, dict[str, bool]]:
    """The rows of a file where they lie, as a tensor that nothing may write into, and what its reader is told.

    Args:
        path: the file.
        key: of what it must be.
        rows: N, how many it must have.
        whole: whether this process has just written it; else all of it is read once, to see that it is sound.

    Returns:
        [N, ...] on the CPU; its pages are shared by all processes that have opened the file.

    Raises:
        Damaged: it is shorter, longer or other than what was written; the message says in what.
        FileNotFoundError: it is not there.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        dtype, shape, summed, notes = _head(file.read(_HEAD), key)
        size = path.stat().st_size - _HEAD
        wanted = prod(shape) * dtype.itemsize
        if shape[0] != rows:
            raise Damaged(f"it has {shape[0]} rows and not {rows}")
        if size != wanted:
            raise Damaged(f"it has {size} bytes of rows and not {wanted}")
        if not whole and _sum(file) != summed:
            raise Damaged("its checksum is another")
    found = np.memmap(path, np.uint8, "r", offset=_HEAD, shape=(wanted,))
    with warnings.catch_warnings(action="ignore"):  # that nothing may write into it
        return torch.from_numpy(found).view(dtype).view(shape), notes


def _head(content: bytes, key: str) -> tuple[torch.dtype, list[int], int, dict[str, bool]]:
    try:
        told = parse_json(content.decode())
        found = str(told["key"])
        dtype, shape, summed = _TYPES[told["dtype"]], [int(size) for size in told["shape"]], int(told["crc32"])
        notes = {str(name): bool(value) for name, value in told["notes"].items()}
        if len(shape) < 2 or min(shape) < 1:
            raise ValueError(shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged("its beginning is not readable") from error
    if found != key:
        raise Damaged("it is of something else")
    return dtype, shape, summed, notes


def _sum(file: BinaryIO) -> int:
    found = 0
    while content := file.read(_AT_ONCE):
        found = zlib.crc32(content, found)
    return found
