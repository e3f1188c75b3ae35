"""A fingerprint of a data set: enough to notice that it is not what it was, without reading what lies in files.

Of images in memory the pixels count. Of images in files the names below the data's folder and the sizes in bytes count.
To look those up for 100,000 files takes a second or two; to read the files would take minutes. So a file whose content
was replaced by as many other bytes goes unnoticed. Labels, their order and the names of the classes count everywhere;
where the data lies does not.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcore.contract.splits import ArraySplit, DataSplits, StreamedSplit
from ltcore.errors import DataError

_NAMED = 3
_AT_ONCE = 1024
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SplitPrint:
    """What is remembered of one split.

    Attributes:
        names: [N] UTF-8 bytes, what its images are called; None where they are in memory.
        marks: [N] uint64; of files their sizes in bytes, of images in memory the beginning of a hash of their pixels.
        labels: [N] int64.
    """

    names: NDArray[np.bytes_] | None
    marks: NDArray[np.uint64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits; equal for splits in which nothing differs."""
        digest = hashlib.sha256()
        if self.names is not None:
            digest.update(b"\0".join(self.names.tolist()))
        digest.update(b"\n" + self.marks.astype("<u8").tobytes() + self.labels.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Fingerprint:
    """What is remembered of a data set.

    Attributes:
        class_names: C names.
        splits: by ``train``, ``val`` and ``test``, those that there are.
    """

    class_names: tuple[str, ...]
    splits: dict[str, SplitPrint]

    def digests(self) -> dict[str, Any]:
        """The fingerprint in short, for ``result.json``: of each split ``images`` and ``digest``, and ``classes``."""
        classes = hashlib.sha256("\0".join(self.class_names).encode()).hexdigest()[:16]
        splits = {name: {"images": len(split), "digest": split.digest} for name, split in self.splits.items()}
        return {"classes": classes, **splits}

    def differences(self, now: Fingerprint) -> list[str]:
        """What differs in `now`, a sentence for each split and for the classes; empty where nothing does."""
        said = _of_classes(self.class_names, now.class_names)
        for name in _SPLITS:
            before, after = self.splits.get(name), now.splits.get(name)
            if before is None or after is None:
                if before is not after:
                    said.append(f"there is {'no' if after is None else 'now a'} {name} split")
            elif before.digest != after.digest:
                said.append(f"of the {name} images {_of_splits(before, after, now.class_names)}")
        return said

    def to_bytes(self) -> bytes:
        """The fingerprint as the content of an npz file."""
        arrays: dict[str, NDArray[Any]] = {
            "class_names": np.frombuffer(json.dumps(self.class_names).encode(), np.uint8)
        }
        for name, split in self.splits.items():
            arrays |= {f"{name}/marks": split.marks, f"{name}/labels": split.labels}
            if split.names is not None:
                arrays[f"{name}/names"] = split.names
        stream = io.BytesIO()
        np.savez_compressed(stream, allow_pickle=False, **arrays)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Fingerprint:
        """What `to_bytes` gave.

        Raises:
            ValueError: it is damaged.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                arrays = dict(stored)
            class_names = tuple(json.loads(arrays["class_names"].tobytes()))
            splits = {
                name: SplitPrint(arrays.get(f"{name}/names"), arrays[f"{name}/marks"], arrays[f"{name}/labels"])
                for name in _SPLITS
                if f"{name}/labels" in arrays
            }
        except Exception as error:  # a damaged archive makes zipfile, zlib and NumPy raise almost anything
            raise ValueError(f"{type(error).__name__}: {error}") from error
        return cls(class_names, splits)


def alike(one: SplitPrint, other: SplitPrint) -> int:
    """How many images of `one` look like one of `other`: the same pixels, or the same size, name and folder."""

    def marks(split: SplitPrint) -> list[tuple[bytes, int]]:
        names = (
            [b""] * len(split) if split.names is None else [b"/".join(name.split(b"/")[-2:]) for name in split.names]
        )
        return list(zip(names, split.marks.tolist(), strict=True))

    if (one.names is None) != (other.names is None):
        return 0
    known = set(marks(other))
    return sum(mark in known for mark in marks(one))


def fingerprint(splits: DataSplits) -> Fingerprint:
    """The fingerprint of a data set as it was read, before its long tail is cut or images are held out.

    Args:
        splits: the data set, which `ltcore.data.prepare.check_splits` has found to be sound.

    Raises:
        DataError: a file is missing.
    """
    found = {"train": splits.train, "val": splits.val, "test": splits.test}
    prints = {name: print_of(split) for name, split in found.items() if split is not None}
    return Fingerprint(splits.class_names, prints)


def print_of(split: ArraySplit | StreamedSplit) -> SplitPrint:
    """What is remembered of one split.

    Raises:
        DataError: a file is missing.
    """
    labels = split.targets.numpy()
    if isinstance(split, ArraySplit):
        return SplitPrint(None, _hashes(split), labels)
    identities = getattr(split, "identities", None)
    if identities is None:
        named = np.array([split.name(index).encode() for index in range(len(split))], dtype=np.bytes_)
        return SplitPrint(named, np.zeros(len(split), np.uint64), labels)
    try:
        names, sizes = identities()
    except OSError as error:
        raise DataError(f"an image cannot be looked at: {error}") from error
    return SplitPrint(np.asarray(names, dtype=np.bytes_), np.asarray(sizes).astype(np.uint64), labels)


def _hashes(split: ArraySplit) -> NDArray[np.uint64]:
    """[N]; the same however the images lie in memory."""
    marks = np.empty(len(split), np.uint64)
    for start in range(0, len(split), _AT_ONCE):
        rows = split.images[start : start + _AT_ONCE].contiguous().numpy()
        for index, row in enumerate(rows, start):
            marks[index] = int.from_bytes(hashlib.sha256(row).digest()[:8], "little")
    return marks


def _of_classes(before: Sequence[str], after: Sequence[str]) -> list[str]:
    if tuple(before) == tuple(after):
        return []
    if len(before) != len(after):
        return [f"there are {len(after)} classes, and were {len(before)}"]
    changed = [(label, *names) for label, names in enumerate(zip(before, after, strict=True)) if names[0] != names[1]]
    shown = [f"{label} was '{old}' and is '{new}'" for label, old, new in changed]
    return [f"{_count(len(changed), 'class has', 'classes have')} another name ({_few(shown)})"]


def _of_splits(before: SplitPrint, after: SplitPrint, class_names: Sequence[str]) -> str:
    """What differs between two splits; something does."""
    if (before.names is None) != (after.names is None):
        return "are now in files" if before.names is None else "are now in memory"
    if before.names is None or after.names is None:
        return _of_arrays(before, after, class_names)
    old = {name: index for index, name in enumerate(before.names.tolist())}
    new = {name: index for index, name in enumerate(after.names.tolist())}
    said = []
    if added := [_told(name) for name in new if name not in old]:
        said.append(f"{_count(len(added), 'is', 'are')} new ({_few(added)})")
    if gone := [_told(name) for name in old if name not in new]:
        said.append(f"{_count(len(gone), 'is', 'are')} gone ({_few(gone)})")
    both = [(name, old[name], new[name]) for name in old if name in new]
    sizes = [
        f"{_told(name)} had {before.marks[i]} bytes and has {after.marks[j]}"
        for name, i, j in both
        if before.marks[i] != after.marks[j]
    ]
    if sizes:
        said.append(f"{_count(len(sizes), 'has', 'have')} another size ({_few(sizes)})")
    labels = [
        f"{_told(name)} was {_label(before.labels[i])} and is {_label(after.labels[j], class_names)}"
        for name, i, j in both
        if before.labels[i] != after.labels[j]
    ]
    if labels:
        said.append(f"{_count(len(labels), 'has', 'have')} another label ({_few(labels)})")
    return ", ".join(said) or "the order is another"


def _of_arrays(before: SplitPrint, after: SplitPrint, class_names: Sequence[str]) -> str:
    if len(before) != len(after):
        return f"there are {len(after)}, and were {len(before)}"
    said = []
    if len(pixels := np.flatnonzero(before.marks != after.marks)):
        same = np.array_equal(np.sort(before.marks), np.sort(after.marks))
        what = "are in another order" if same else f"{'has' if len(pixels) == 1 else 'have'} other pixels"
        said.append(f"{len(pixels)} {what} ({_few([f'image {index}' for index in pixels])})")
    if len(labels := np.flatnonzero(before.labels != after.labels)):
        shown = [
            f"image {i} was {_label(before.labels[i])} and is {_label(after.labels[i], class_names)}" for i in labels
        ]
        said.append(f"{_count(len(labels), 'has', 'have')} another label ({_few(shown)})")
    return ", ".join(said)


def _label(label: int, class_names: Sequence[str] = ()) -> str:
    return f"{label} '{class_names[label]}'" if label < len(class_names) else str(label)


def _told(name: bytes) -> str:
    return name.decode(errors="replace")


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _few(shown: Sequence[str]) -> str:
    return "; ".join(shown[:_NAMED]) + ("; ..." if len(shown) > _NAMED else "")
