"""From a data set to what a run trains on: cut the long tail, hold images out, check everything once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltcore.contract.backbone import Pretraining
from ltcore.contract.imbalance import IntArray, class_label, long_tailed_counts, long_tailed_indices
from ltcore.contract.recipe import Data, Normalize
from ltcore.contract.splits import ArraySplit, DataSplits, StreamedSplit
from ltcore.data.duplicates import Duplicates
from ltcore.data.pretraining import as_pretrained
from ltcore.data.streaming import find_broken, worker_count
from ltcore.data.transforms import ImageTransform, resolve
from ltcore.errors import DataError

_NAMED = 3


@dataclass(frozen=True)
class PreparedData:
    """The data of a run.

    Attributes:
        train: the images that are trained on.
        val: the held-out training images, or the data set's own validation split; None where there is neither.
        test: the test split; None while values are selected.
        class_names: C names, in label order.
        class_counts: [C] int64, training images of each class, without the held-out ones.
        kept: [N] int64, where each training image stands in the data set's original training split.
        mean: per channel, on the scale 0..1.
        std: per channel, on the scale 0..1.
        transform: how images are prepared.
        notes: what the user should be told, a sentence each: images that were left out, files that were ignored.
        left_out: how many training images were left out because they cannot be decoded.
        duplicates: images that two splits or two classes share; None where it was not looked for them.
    """

    train: ArraySplit | StreamedSplit
    val: ArraySplit | StreamedSplit | None
    test: ArraySplit | StreamedSplit | None
    class_names: tuple[str, ...]
    class_counts: Tensor
    kept: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: ImageTransform
    notes: tuple[str, ...] = ()
    left_out: int = 0
    duplicates: Duplicates | None = None


def prepare(splits: DataSplits, asked: Data | None = None, weights: Pretraining | None = None) -> PreparedData:
    """Leave broken images out, cut the long tail, then hold images out.

    Of each class, `asked.holdout` training images become validation images. With `asked.holdout_before_cut` they are
    taken first, from all that the data set has. Classes with no more than that many give none.

    Args:
        splits: the data set.
        asked: the recipe's ``data``; what it leaves open is as the weights, else the data set say. None leaves all.
        weights: what the backbone's pre-trained weights were trained on, if it has any.

    Raises:
        DataError: the data set is malformed, a class would have no training image, or nothing can be held out.
        RunError: a process that decodes images died.
    """
    check_splits(splits)
    channels = _channels(splits)
    asked, about_weights = as_pretrained(asked or Data(use=""), weights, channels)
    transform = resolve(splits, asked.transform, channels)
    mean, std = _normalization(splits, asked.normalize, channels)
    present, all_there = torch.arange(len(splits.train)), len(splits.train)
    if asked.broken == "skip":
        splits, present = without_broken(splits, worker_count(asked.workers), asked.range)
    imbalance = splits.imbalance if asked.imbalance is None else asked.imbalance
    names, targets = splits.class_names, splits.train.targets.numpy()
    kept, val = np.arange(len(targets)), splits.val  # every image, in the data set's order
    if asked.holdout > 0:
        _check_holdout(splits, asked.holdout)

    def hold_out(counts: IntArray) -> tuple[IntArray, ArraySplit | StreamedSplit]:
        held, rest = _hold_out(targets, kept, counts, asked.holdout, imbalance.seed + 1)
        return rest, splits.train.subset(torch.from_numpy(held))

    available = np.bincount(targets, minlength=len(names))
    if asked.holdout > 0 and asked.holdout_before_cut:
        kept, val = hold_out(available)
        available = np.bincount(targets[kept], minlength=len(names))
    counts = long_tailed_counts(imbalance, available, names)
    if imbalance.kind != "none":
        kept = kept[long_tailed_indices(targets[kept], counts, imbalance.seed, names)]
    if asked.holdout > 0 and not asked.holdout_before_cut:
        kept, val = hold_out(counts)
    whole = len(kept) == len(targets) and imbalance.kind == "none"
    index = torch.from_numpy(kept)
    train = splits.train if whole else splits.train.subset(index)  # no copy of a set that is used as it is
    return PreparedData(
        train=train,
        val=val,
        test=splits.test,
        class_names=names,
        class_counts=torch.bincount(train.targets, minlength=len(names)),
        kept=present[index],
        mean=mean,
        std=std,
        transform=_windowed(transform, asked, splits),
        notes=(*splits.notes, *about_weights),
        left_out=all_there - len(present),
    )


def without_broken(
    splits: DataSplits, workers: int, window: Sequence[float] | None = None
) -> tuple[DataSplits, Tensor]:
    """The data set without the images that cannot be decoded, each of which is decoded for that.

    Args:
        splits: the data set. Images in memory are left alone.
        workers: processes that decode.
        window: see `ltcore.data.pixels.converted`.

    Returns:
        The data set, with a note on what was left out, and [N] int64, where the remaining training images stood.

    Raises:
        DataError: a split has no other image.
    """
    changed: dict[str, Any] = {}
    present = torch.arange(len(splits.train))
    notes = list(splits.notes)
    for split, data in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if data is None or isinstance(data, ArraySplit):
            continue
        broken = find_broken(data, workers, window)
        if not broken:
            continue
        if len(broken) == len(data):
            raise DataError(f"no image of the {split} split can be decoded; the first is {broken[0].said}")
        good = torch.ones(len(data), dtype=torch.bool)
        good[[found.index for found in broken]] = False
        index = torch.nonzero(good).flatten()
        changed[split] = data.subset(index)
        if split == "train":
            present = index
        shown = "; ".join(found.said for found in broken[:_NAMED])
        more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        notes.append(f"{len(broken)} of {len(data)} {split} images cannot be decoded and are left out: {shown}{more}")
    return replace(splits, **changed, notes=tuple(notes)), present


def _channels(splits: DataSplits) -> int:
    return splits.train.images.shape[1] if isinstance(splits.train, ArraySplit) else 3


def _windowed(transform: ImageTransform, asked: Data, splits: DataSplits) -> ImageTransform:
    if asked.range is None:
        return transform
    if isinstance(splits.train, ArraySplit):
        raise DataError("data.range is for images of more than eight bits in files; those of this set have eight")
    return replace(transform, window=tuple(asked.range))


def _normalization(
    splits: DataSplits, asked: Normalize | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    for what in ("mean", "std"):
        values = getattr(asked or splits, what)
        if len(values) != channels:
            whose = "data.normalize has" if asked else "the data set states"
            raise DataError(f"{whose} {len(values)} values of {what}, but the images have {channels} channels")
    found = asked or splits
    return tuple(found.mean), tuple(found.std)


def _check_holdout(splits: DataSplits, holdout: int) -> None:
    """Refuse to hold images out where the data set has a validation split, or images that belong together.

    Raises:
        DataError: it does.
    """
    if splits.val is not None:
        raise DataError(
            f"data.holdout is {holdout}, but the data set has a validation split of its own ({len(splits.val)} "
            "images); remove data.holdout to use that one"
        )
    if splits.grouped:
        raise DataError(
            f"data.holdout is {holdout}, but the images belong together in groups, which it would part; set "
            "data.options.val_fraction, which holds out whole groups, and remove data.holdout"
        )


def _hold_out(
    targets: np.ndarray, kept: IntArray, counts: IntArray, holdout: int, seed: int
) -> tuple[IntArray, IntArray]:
    """The held-out and the remaining indices, both int64; the remaining ones keep their order."""
    random = np.random.RandomState(seed)
    labels, held = targets[kept], []
    for label, count in enumerate(counts):
        index = kept[labels == label]
        # Classes that sit out draw, too: a larger holdout then contains the smaller one.
        random.shuffle(index)
        if count > holdout:
            held.append(index[:holdout])
    if not held:
        raise DataError(
            f"data.holdout is {holdout}, but no class has more training images than that (the largest has "
            f"{int(counts.max())}); lower it"
        )
    out = np.concatenate(held)
    return out, kept[~np.isin(kept, out)]


def check_splits(splits: DataSplits) -> None:
    """Refuse a malformed data set before anything is trained.

    Raises:
        DataError: names the split, the first offending label and what is wrong.
    """
    names = splits.class_names
    if len(names) < 2:
        raise DataError(f"the data set names {len(names)} class; a classifier needs at least two")
    found = {"training": splits.train, "validation": splits.val, "test": splits.test}
    for split, data in found.items():
        if data is None:
            continue
        if isinstance(data, ArraySplit) != isinstance(splits.train, ArraySplit):
            raise DataError(
                f"the training and the {split} images must both be in memory (ArraySplit) or both be streamed"
            )
        if isinstance(data, ArraySplit):
            _check_images(split, data)
        _check_targets(split, data, names)
        if (
            isinstance(data, ArraySplit)
            and isinstance(splits.train, ArraySplit)
            and data.images.shape[1:] != splits.train.images.shape[1:]
        ):
            raise DataError(
                f"the {split} images are {tuple(data.images.shape[1:])} (channels, height, width), but the training "
                f"images are {tuple(splits.train.images.shape[1:])}; bring them to one size"
            )
    if isinstance(splits.train, ArraySplit):
        _, height, width = splits.train.images.shape[1:]
        if height != width:
            raise DataError(f"the images are {height} x {width} pixels, but must be square; crop or pad them")


def _check_images(split: str, data: ArraySplit) -> None:
    if data.images.dtype != torch.uint8 or data.images.ndim != 4:
        raise DataError(
            f"the {split} images are {data.images.dtype} of shape {tuple(data.images.shape)}, but must be uint8 "
            "[N, C, H, W]"
        )


def _check_targets(split: str, data: ArraySplit | StreamedSplit, names: Sequence[str]) -> None:
    targets = data.targets
    count = len(data.images) if isinstance(data, ArraySplit) else len(data)
    if targets.dtype != torch.int64 or targets.ndim != 1 or len(targets) != count:
        raise DataError(
            f"the {split} labels are {targets.dtype} of shape {tuple(targets.shape)}, but must be int64, one for each "
            f"of the {count} images"
        )
    if len(targets) == 0:
        raise DataError(f"the {split} split has no images")
    wrong = torch.nonzero((targets < 0) | (targets >= len(names)))
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"the {split} label at index {first} is {int(targets[first])}, but the data set has {len(names)} classes, "
            f"from {class_label(0, names)} to {class_label(len(names) - 1, names)}; correct the label or name the class"
        )
