"""Images that are byte for byte the same, across splits or under two classes.

Files are compared by size first, then by a block from the middle, and only what is still alike as a whole. Of 100,000
photographs few are read further than that block.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from ltcore.contract.result import DuplicatesRecord
from ltcore.contract.splits import ArraySplit, FileSplit, StreamedSplit
from ltcore.errors import listed

#: More images than this are compared only where it is asked for.
MOST = 100_000
#: Bytes from a file's middle that are compared before the whole of it: heads are often alike, ends are padding.
_BLOCK = 4096
_HASH = 16

Split = ArraySplit | StreamedSplit
#: Gives the key of the image at an index, at a step; None where it cannot be read.
Reader = Callable[[int, int], Any]


class Place(NamedTuple):
    """An image: its split, where it stands there, and its label."""

    split: str
    at: int
    label: int


@dataclass(frozen=True)
class Duplicates:
    """What was found among the images of a run.

    Attributes:
        across_splits: held-out and test images that another split has, too.
        two_classes: images that another class has, too.
        notes: a sentence for each kind that was found.
    """

    across_splits: int
    two_classes: int
    notes: tuple[str, ...] = ()

    def record(self) -> DuplicatesRecord:
        """The numbers, for ``result.json``."""
        return {"across_splits": self.across_splits, "two_classes": self.two_classes}


def uncompared(splits: Mapping[str, Split | None]) -> str:
    """That there are too many images to compare them unless it is asked for; empty where there are not."""
    number = sum(len(split) for split in splits.values() if split is not None)
    if number <= MOST:
        return ""
    return f"{number} images are more than {MOST}: none were compared with each other; data.duplicates=look does"


def find_duplicates(splits: Mapping[str, Split | None], class_names: Sequence[str]) -> Duplicates | None:
    """Look for images that two splits share, or two classes.

    Args:
        splits: by name, the training split first.
        class_names: C names, for messages.

    Returns:
        What was found; None where a data set of a plugin gives no bytes to compare.
    """
    present = {name: split for name, split in splits.items() if split is not None}
    readers: dict[str, Reader] = {}
    for name, split in present.items():
        if (reader := _reader(split)) is None:
            return None
        readers[name] = reader
    places = [
        Place(name, index, label)
        for name, split in present.items()
        for index, label in enumerate(split.targets.tolist())
    ]
    groups: list[Sequence[Place]] = [places]
    for step in range(3):
        groups = _refined(groups, readers, step)
    order = {name: number for number, name in enumerate(present)}
    held: list[tuple[Place, Place]] = []
    classes: list[tuple[Place, Place]] = []
    for group in groups:
        first = group[0]  # in the order of the splits
        held += [(place, first) for place in group if order[place.split] > order[first.split]]
        for place in group:
            if other := next((each for each in group if each.label != place.label), None):
                classes.append((place, other))
    notes = []
    if held:
        place, twin = held[0]
        where = sorted({each.split for each, _ in held}, key=lambda name: order[name])
        notes.append(
            f"{len(held)} images of {listed(where)} are byte for byte in an earlier split, too, first "
            f"{_name(present, place)}, which is {_name(present, twin)}; leave each in one split only"
        )
    if classes:
        place, twin = classes[0]
        notes.append(
            f"{len(classes)} images are byte for byte under two classes, first {_name(present, place)} in "
            f"'{class_names[place.label]}' and {_name(present, twin)} in '{class_names[twin.label]}'; correct a label"
        )
    return Duplicates(len(held), len(classes), tuple(notes))


def _refined(groups: Iterable[Sequence[Place]], readers: Mapping[str, Reader], step: int) -> list[Sequence[Place]]:
    """The groups parted by the key of a step, without those of one split and class, in which nothing can be wrong."""
    found: list[Sequence[Place]] = []
    for group in groups:
        parts: dict[Any, list[Place]] = defaultdict(list)
        for place in group:
            if (value := readers[place.split](place.at, step)) is not None:
                parts[value].append(place)
        found += [
            part
            for part in parts.values()
            if len({place.split for place in part}) > 1 or len({place.label for place in part}) > 1
        ]
    return found


def _reader(split: Split) -> Reader | None:
    """What gives an image's key at a step: 0 its size, 1 its middle, 2 the whole; None where its bytes are not had."""
    if isinstance(split, ArraySplit):
        images = split.images
        return lambda index, step: _hash(images[index].contiguous().numpy().tobytes()) if step == 0 else 0
    if isinstance(split, FileSplit):
        return lambda index, step: _of_file(split.name(index), step)
    encoded: Callable[[int], bytes | None] | None = getattr(split, "encoded", None)
    if encoded is None:
        return None
    return lambda index, step: _of_bytes(encoded(index)) if step == 0 else 0


def _of_bytes(content: bytes | None) -> bytes | None:
    return None if content is None else _hash(content)


def _of_file(path: str, step: int) -> Any:
    try:
        if step == 0:
            return os.stat(path).st_size
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if step == 1:
                file.seek(max(0, (size - _BLOCK) // 2))
                return _hash(file.read(_BLOCK) or b"")
            return _hash(file.readall()) if size > _BLOCK else 0  # the block was the whole of it
    except OSError:
        return None  # whoever decodes it says so


def _hash(content: bytes) -> bytes:
    return blake2b(content, digest_size=_HASH).digest()


def _name(splits: Mapping[str, Split], place: Place) -> str:
    split = splits[place.split]
    return f"{place.split} image {place.at}" if isinstance(split, ArraySplit) else split.name(place.at)
