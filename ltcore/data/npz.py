"""A user's own images in one ``.npz`` file, with the key names of MedMNIST."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from ltcore.contract.hook import hookimpl
from ltcore.contract.method import Method, Options
from ltcore.contract.splits import ArraySplit, DataSplits
from ltcore.errors import DataError

Array = NDArray[Any]


class NpzOptions(Options):
    """Options of `Npz`."""

    path: str
    """The file, from `root`."""
    root: str | None = None
    """The folder that `path` starts from; by default the one that the command is started in."""
    mean: list[float] | None = None
    """Mean of each channel on the scale 0..1; by default that of the training images."""
    std: list[Annotated[float, Field(gt=0)]] | None = None
    """Standard deviation of each channel on the scale 0..1; by default that of the training images."""
    crop_padding: int = Field(default=0, ge=0)
    """Pixels of zero padding for the random crop of training images; 0 for no crop."""
    flip: bool = False
    """Whether training images are flipped left to right half of the time."""


class Npz(Method[NpzOptions]):
    """Images and labels of an ``.npz`` file.

    Keys: ``train_images`` [N, H, W] or [N, H, W, C] uint8 with H = W, ``train_labels`` [N] or [N, 1] integers from 0;
    ``test_images`` and ``test_labels`` likewise; ``val_images`` and ``val_labels`` if there is a validation split.
    """

    summary = "your own images in one .npz file, with MedMNIST's key names (train_images, train_labels, ...)"

    def __init__(self, options: NpzOptions) -> None:
        super().__init__(options)  # unlike other data sets this one has no defaults: `path` is required

    @property
    def _path(self) -> Path:
        return Path(self.options.root or "").expanduser() / Path(self.options.path).expanduser()

    @property
    def provides(self) -> AbstractSet[str]:
        """Validation images, where the file lists them; its content is not read."""
        try:
            with np.load(self._path, allow_pickle=False) as archive:
                return {"validation"} if "val_images" in archive.files else frozenset()
        except Exception:  # of any kind, as below; build_data says what is wrong
            return frozenset()

    @hookimpl
    def build_data(self) -> DataSplits:
        """The splits of the file; a class is any label up to the largest one of the training split."""
        path = self._path
        arrays = _read(path)
        train = _split(path, arrays, "train", None)
        num_classes = int(train[1].max()) + 1
        test = _split(path, arrays, "test", num_classes)
        has_val = "val_images" in arrays or "val_labels" in arrays
        val = _split(path, arrays, "val", num_classes) if has_val else None
        for name, split in (("test", test), ("val", val)):
            if split is not None and split[0].shape[1:] != train[0].shape[1:]:
                raise DataError(
                    f"{path}: {name}_images are {_hwc(split[0])}, but train_images are {_hwc(train[0])}; "
                    "bring them to one size and number of channels"
                )
        mean, std = channel_statistics(train[0])
        return DataSplits(
            train=_to_torch(train),
            test=_to_torch(test),
            val=None if val is None else _to_torch(val),
            class_names=tuple(str(label) for label in range(num_classes)),
            mean=_per_channel(self.options.mean, mean, "mean"),
            std=_per_channel(self.options.std, std, "std"),
            crop_padding=self.options.crop_padding,
            flip=self.options.flip,
        )


def channel_statistics(images: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of [N, H, W, C] uint8, on the scale 0..1.

    From histograms: exact, and without a floating-point copy of the images. A constant channel gets 1 as its standard
    deviation, so that it can be divided by.
    """
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[3]):
        share = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., 0].size
        mean.append(float(share @ values))
        std.append(float(np.sqrt(share @ (values - mean[-1]) ** 2)) or 1.0)
    return tuple(mean), tuple(std)


def _read(path: Path) -> Mapping[str, Array]:
    """Every array of the file that we know; nothing is unpickled."""
    if not path.is_file():
        raise DataError(f"{path.absolute()} is not there (data.options.path); it must be an .npz file")
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged archive makes zipfile, zlib and NumPy raise almost anything
        raise DataError(f"{path} is not an .npz file ({error}); write one with numpy.savez") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{path} holds a single array; write an .npz file with numpy.savez(path, train_images=...)")
    arrays: dict[str, Array] = {}
    with archive:
        for key in (f"{split}_{part}" for split in ("train", "val", "test") for part in ("images", "labels")):
            if key not in archive.files:
                if not key.startswith("val_"):
                    raise DataError(
                        f"{path}: key '{key}' is missing; the file has {', '.join(archive.files) or 'none'}"
                    )
                continue
            try:
                arrays[key] = np.asanyarray(archive[key])  # bytes, where its head is none
            except Exception as error:
                raise DataError(f"{path}: key '{key}' cannot be read ({error}); save it as a plain array") from error
    return arrays


def _split(path: Path, arrays: Mapping[str, Array], name: str, num_classes: int | None) -> tuple[Array, Array]:
    """One split, checked: images [N, H, W, C] uint8 and labels [N] int64; `num_classes` None: as many as needed."""
    images_key, labels_key = f"{name}_images", f"{name}_labels"
    for key in (images_key, labels_key):
        if key not in arrays:  # of the validation split only one of the two
            raise DataError(f"{path}: key '{key}' is missing")
    images, labels = arrays[images_key], arrays[labels_key]
    if images.dtype != np.uint8:
        raise DataError(f"{path}: {images_key} is {images.dtype}, but must be uint8 (0..255)")
    if images.ndim not in (3, 4):
        third = "; a third axis of space, as of volumes, is not read: save slices" if images.ndim == 5 else ""
        raise DataError(f"{path}: {images_key} has shape {images.shape}, but must be [N, H, W] or [N, H, W, C]{third}")
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[3] == images.shape[1] == images.shape[2] > 4:
        raise DataError(
            f"{path}: {images_key} has shape {images.shape}, whose last axis is as long as height and width: volumes "
            "[N, D, H, W] of one channel, it seems, while images are [N, H, W] or [N, H, W, C]; save slices of them"
        )
    if images.shape[1] != images.shape[2]:
        hint = "; move the channels to the end" if images.shape[2] == images.shape[3] else "; crop or pad them"
        raise DataError(f"{path}: {images_key} are not square, {_hwc(images)} (H x W x C){hint}")
    if images.size == 0:
        raise DataError(f"{path}: {images_key} is empty, shape {images.shape}")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{path}: {labels_key} has shape {labels.shape}, but must be [N] or [N, 1], one label per image"
        )
    if len(labels) != len(images):
        raise DataError(f"{path}: {images_key} has {len(images)} images, but {labels_key} has {len(labels)} labels")
    if labels.dtype == np.bool_:
        raise DataError(f"{path}: {labels_key} is true or false; save it as 0 and 1: labels.astype(numpy.int64)")
    if not np.issubdtype(labels.dtype, np.number) or np.issubdtype(labels.dtype, np.complexfloating):
        raise DataError(f"{path}: {labels_key} is {labels.dtype}, but must hold whole numbers; [0] is {labels[0]!r}")
    fractional = ~np.isfinite(labels) | (labels != np.floor(labels))
    _refuse(path, labels_key, labels, fractional, "is not a whole number")
    _refuse(path, labels_key, labels, labels < 0, "is negative; labels count from 0")
    if num_classes is None:
        # So large a label leaves classes without an image: a stray 255, or ids that are not numbered from 0.
        what = f"is too large for {len(labels)} images; number the classes from 0 without gaps"
        _refuse(path, labels_key, labels, labels >= len(labels), what)
    else:
        what = f"is not among the {num_classes} classes of train_labels"
        _refuse(path, labels_key, labels, labels >= num_classes, what)
    return images, labels.astype(np.int64)


def _refuse(path: Path, key: str, labels: Array, wrong: Array, what: str) -> None:
    """Raise for the first label that `wrong` [N] marks."""
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(f"{path}: {key}[{first}] is {labels[first]}, which {what} ({int(wrong.sum())} such labels)")


def _hwc(images: Array) -> str:
    return " x ".join(str(n) for n in images.shape[1:])


def _per_channel(given: list[float] | None, computed: tuple[float, ...], name: str) -> tuple[float, ...]:
    if given is not None and len(given) != len(computed):
        raise DataError(f"data.options.{name} has {len(given)} numbers, but the images have {len(computed)} channels")
    return computed if given is None else tuple(given)


def _to_torch(split: tuple[Array, Array]) -> ArraySplit:
    return ArraySplit(torch.from_numpy(split[0]).permute(0, 3, 1, 2), torch.from_numpy(split[1]))
