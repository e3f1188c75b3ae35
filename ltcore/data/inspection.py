"""What is looked for before the first epoch: broken images, duplicates, classes that nothing is tested on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ltcore.contract.recipe import Data
from ltcore.contract.splits import ArraySplit, StreamedSplit
from ltcore.data.duplicates import find_duplicates, uncompared
from ltcore.data.pixels import fitting_window
from ltcore.data.prepare import PreparedData
from ltcore.data.streaming import Broken, find_broken, worker_count
from ltcore.errors import DataError, listed

#: How many images of a split are decoded, spread over it, unless all of them are to be.
SAMPLE = 64
_NAMED = 3
#: What a whole file ends with, within so many of its last bytes.
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 64


def inspect(data: PreparedData, asked: Data, verify: bool = False) -> PreparedData:
    """The data with notes on what a run should be told before it trains.

    Images of the validation and test split, which are decoded only after a stage has been trained, are opened. This
    shows that they are there, have a head that Pillow knows, and an end. `SAMPLE` of them are decoded, and those
    without an end.

    Args:
        data: what a run trains and is tested on.
        asked: the recipe's ``data``.
        verify: decode all images of all splits.

    Raises:
        DataError: images are broken, and the recipe does not say that such images are left out.
        RunError: a process that decodes images died.
    """
    splits = {"train": data.train, "val": data.val, "test": data.test}
    if asked.broken == "error":
        for name, split in splits.items():
            if split is None or isinstance(split, ArraySplit):
                continue
            if verify:
                _refuse(name, split, find_broken(split, worker_count(asked.workers), asked.range), "decoded")
            elif name != "train":
                _refuse(
                    name, split, find_unreadable(split, asked.range), f"looked at, {min(SAMPLE, len(split))} decoded"
                )
    notes, found = [*data.notes, *untested(data)], None
    if asked.range is None and not isinstance(data.train, ArraySplit) and (window := fitting_window(data.train)):
        low, high = window
        notes.append(
            f"images of more than eight bits were looked at, and their values lie in {low:g}..{high:g}: read as they "
            f"are, they would be dark or refused; --set data.range=[{low:g},{high:g}] makes these black and white"
        )
    too_many = uncompared(splits)
    if asked.duplicates == "look" or (asked.duplicates == "auto" and not too_many):
        found = find_duplicates(splits, data.class_names)
        notes += found.notes if found else []
    elif asked.duplicates == "auto":
        notes.append(too_many)
    return replace(data, notes=tuple(notes), duplicates=found)


def untested(data: PreparedData) -> list[str]:
    """A sentence about the classes without a test image, if there are any."""
    if data.test is None:
        return []
    counts = torch.bincount(data.test.targets, minlength=len(data.class_names))
    names = [data.class_names[label] for label in torch.nonzero(counts == 0).flatten().tolist()]
    if not names:
        return []
    more = ", ..." if len(names) > _NAMED else ""
    return [
        f"{len(names)} of {len(counts)} classes have no test image, first {listed(names[:_NAMED])}{more}; no figure "
        "covers them"
    ]


def find_unreadable(split: StreamedSplit, window: Sequence[float] | None = None) -> list[Broken]:
    """Images that cannot be opened, and those of a sample, or without an end, that cannot be decoded."""
    found, suspected = {}, set(np.linspace(0, len(split) - 1, min(SAMPLE, len(split)), dtype=int).tolist())
    for index in range(len(split)):
        try:
            with split.open(index) as image:
                if _is_cut_off(image):
                    suspected.add(index)
        except Exception as error:  # a damaged file makes Pillow raise almost anything
            found[index] = Broken(index, split.name(index), f"{type(error).__name__}: {error}")
    closer = sorted(suspected - set(found))
    chosen = split.subset(torch.tensor(closer, dtype=torch.int64))
    for broken in find_broken(chosen, 0, window) if closer else ():
        found[closer[broken.index]] = replace(broken, index=closer[broken.index])
    return [found[index] for index in sorted(found)]


def _is_cut_off(image: Any) -> bool:
    """Whether a file lacks the end that its format has, as after an interrupted copy."""
    end = _ENDS.get(image.format)
    if end is None or image.fp is None:
        return False
    place = image.fp.tell()
    size = image.fp.seek(0, io.SEEK_END)
    image.fp.seek(max(0, size - _TAIL))
    tail = image.fp.read()
    image.fp.seek(place)
    return end not in tail


def _refuse(name: str, split: StreamedSplit, broken: list[Broken], how: str) -> None:
    if not broken:
        return
    shown = "; ".join(each.said for each in broken[:_NAMED])
    more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    raise DataError(
        f"{len(broken)} of {len(split)} {name} images cannot be read ({how} before training): {shown}{more}. Replace "
        "them, or leave such images out with --set data.broken=skip; a run that has begun goes on with --resume"
    )
