"""From a data set to what a run trains on: cut the long tail, hold images out, check everything once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltcore.data.imbalance import Imbalance, IntArray, class_label, long_tailed_counts, long_tailed_indices
from ltcore.data.splits import ArraySplit, DataSplits
from ltcore.errors import DataError


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
        crop_padding: pixels of zero padding for the random crop of training images; 0 for no crop.
        flip: whether training images are flipped left to right half of the time.
    """

    train: ArraySplit
    val: ArraySplit | None
    test: ArraySplit | None
    class_names: tuple[str, ...]
    class_counts: Tensor
    kept: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool


def prepare(
    splits: DataSplits,
    imbalance: Imbalance | None = None,
    holdout: int = 0,
    crop_padding: int | None = None,
    flip: bool | None = None,
) -> PreparedData:
    """Cut the long tail, then hold images out.

    Args:
        splits: the data set.
        imbalance: the recipe's long tail; None for the data set's own.
        holdout: training images to hold out of each class for validation, once the tail is cut. Classes with no more
            than that many sit out.
        crop_padding: the recipe's padding in pixels; None for the data set's own.
        flip: the recipe's flipping; None for the data set's own.

    Raises:
        DataError: the data set is malformed, a class would have no training image, or nothing can be held out.
    """
    check_splits(splits)
    imbalance = splits.imbalance if imbalance is None else imbalance
    names, targets = splits.class_names, splits.train.targets.numpy()
    available = np.bincount(targets, minlength=len(names))
    counts = long_tailed_counts(imbalance, available, names)
    if imbalance.kind == "none":
        kept = np.arange(len(targets))  # every image, in the data set's order
    else:
        kept = long_tailed_indices(targets, counts, imbalance.seed, names)
    val = splits.val
    if holdout > 0:
        if val is not None:
            raise DataError(
                f"data.holdout is {holdout}, but the data set has a validation split of its own ({len(val)} images); "
                "remove data.holdout to use that one"
            )
        held, kept = _hold_out(targets, kept, counts, holdout, imbalance.seed + 1)
        val = splits.train.subset(torch.from_numpy(held))
    whole = len(kept) == len(targets) and imbalance.kind == "none"
    index = torch.from_numpy(kept)
    train = splits.train if whole else splits.train.subset(index)  # no copy of a set that is used as it is
    return PreparedData(
        train=train,
        val=val,
        test=splits.test,
        class_names=names,
        class_counts=torch.bincount(train.targets, minlength=len(names)),
        kept=index,
        mean=splits.mean,
        std=splits.std,
        crop_padding=splits.crop_padding if crop_padding is None else crop_padding,
        flip=splits.flip if flip is None else flip,
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
        _check_arrays(split, data, names)
        if data.images.shape[1:] != splits.train.images.shape[1:]:
            raise DataError(
                f"the {split} images are {tuple(data.images.shape[1:])} (channels, height, width), but the training "
                f"images are {tuple(splits.train.images.shape[1:])}; bring them to one size"
            )
    channels, height, width = splits.train.images.shape[1:]
    if height != width:
        raise DataError(f"the images are {height} x {width} pixels, but must be square; crop or pad them")
    for what, values in (("mean", splits.mean), ("std", splits.std)):
        if len(values) != channels:
            raise DataError(
                f"the data set states {len(values)} values of {what}, but its images have {channels} channels"
            )


def _check_arrays(split: str, data: ArraySplit, names: Sequence[str]) -> None:
    images, targets = data.images, data.targets
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(
            f"the {split} images are {images.dtype} of shape {tuple(images.shape)}, but must be uint8 [N, C, H, W]"
        )
    if targets.dtype != torch.int64 or targets.ndim != 1 or len(targets) != len(images):
        raise DataError(
            f"the {split} labels are {targets.dtype} of shape {tuple(targets.shape)}, but must be int64, one for each "
            f"of the {len(images)} images"
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
