"""CIFAR's published files: pickles of Python 2, read only where they are what was published.

torchvision reads them, too, but its import brings PyTorch's compiler, which takes ten times as long as the reading.
Pixels are not read at all: the file is mapped into memory, where processes that read it at the same time share it.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: MD5 of the published files, by folder: what the downloads are compared with everywhere.
CHECKSUMS = {
    "cifar-10-batches-py": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    "cifar-100-python": {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
}
PIXELS = 3072


def read_images(folder: Path, names: list[str], labels: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of some of the files, one after the other.

    Args:
        folder: the published folder.
        names: the files in it.
        labels: which of a file's labels.

    Returns:
        [N, 3, 32, 32] uint8, not to be written into, and [N] int64.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not the published one.
    """
    found = [read_file(folder / name) for name in names]
    images = [part["data"].array for part in found]
    whole = images[0] if len(images) == 1 else np.concatenate(images)
    return whole.reshape(-1, 3, 32, 32), np.array([label for part in found for label in part[labels]], dtype=np.int64)


def read_file(path: Path) -> dict[str, Any]:
    """The content of one file, by its keys; text is bytes, an array of bytes a `Pixels`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not the published one.
    """
    with open(path, "rb") as file:
        there = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hashlib.md5(there).hexdigest() != CHECKSUMS[path.parent.name].get(path.name):
        raise ValueError(f"the checksum of {path.name} is another")
    start, size = _pixels(there)
    # Without the pixels: the sign of a text, that it has no bytes, and what follows.
    rest = there[:start] if not size else there[: start - 4] + b"\0\0\0\0" + there[start + size :]
    content = _Unpickler(io.BytesIO(rest), encoding="bytes").load()
    for value in content.values():
        if isinstance(value, Pixels) and size:
            value.array = np.frombuffer(there, np.uint8, size, start).reshape(value.shape)
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}


def _pixels(there: mmap.mmap) -> tuple[int, int]:
    """Where the pixels begin, and how many bytes they have: a text of Python 2 of whole images, if there is one."""
    for sign in re.finditer(rb"T(.{4})", there, re.DOTALL):
        size = int.from_bytes(sign.group(1), "little")
        if size and size % PIXELS == 0 and sign.end() + size <= len(there):
            return sign.end(), size
    return len(there), 0


class Pixels:
    """Stands for NumPy's array while a file is unpickled, and looks at the file's bytes in place of copying them."""

    shape: tuple[int, ...]
    array: NDArray[np.uint8]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """What NumPy's array would take: version, shape, type, order, bytes."""
        self.shape = state[1]
        if state[-1]:
            self.array = np.frombuffer(state[-1], np.uint8).reshape(self.shape)


class _Type:
    """Stands for NumPy's types; there are only bytes."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def _reconstruct(*_: Any) -> Pixels:
    return Pixels()


class _Unpickler(pickle.Unpickler):
    """Makes arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """See `pickle.Unpickler.find_class`."""
        known = {"_reconstruct": _reconstruct, "ndarray": Pixels, "dtype": _Type}
        if not module.startswith("numpy") or name not in known:
            raise ValueError(f"there is a {module}.{name} in it")
        return known[name]
