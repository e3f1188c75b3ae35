"""The images of CIFAR-100-LT at imbalance 100, small enough to travel: lossless WebP, many images in a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

#: Images in a picture: so many beside each other, and at most so many in all.
ACROSS, TILES = 50, 2500
SPLITS = ("train", "test")
Arrays = dict[str, Any]


def mosaic(images: Any) -> Any:
    """[N, H, W, 3] images as one picture, the last row filled up with black."""
    number, height, width, _ = images.shape
    rows = -(-number // ACROSS)
    whole = np.zeros((rows * ACROSS, height, width, 3), np.uint8)
    whole[:number] = images
    tiles = whole.reshape(rows, ACROSS, height, width, 3).swapaxes(1, 2)
    return tiles.reshape(rows * height, ACROSS * width, 3)


def tiles(picture: Any, number: int, height: int) -> Any:
    """The images of a `mosaic`."""
    rows, width = len(picture) // height, picture.shape[1] // ACROSS
    return picture.reshape(rows, height, ACROSS, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)[:number]


def save(arrays: Arrays, folder: Path) -> None:
    """Write images and labels, as the data set `npz` names them, into a new folder."""
    folder.mkdir(parents=True)
    for split in SPLITS:
        images = arrays[f"{split}_images"]
        for start in range(0, len(images), TILES):
            picture = Image.fromarray(mosaic(images[start : start + TILES]))
            picture.save(folder / f"{split}-{start:06}.webp", lossless=True, quality=50, method=3)
    labels = {f"{split}_labels": arrays[f"{split}_labels"] for split in SPLITS}
    np.savez_compressed(folder / "labels.npz", height=arrays["train_images"].shape[1], **labels)


def read(folder: Path) -> Arrays:
    """What `save` was given."""
    with np.load(folder / "labels.npz") as stored:
        arrays = dict(stored)
    height = int(arrays.pop("height"))
    for split in SPLITS:
        number, parts = len(arrays[f"{split}_labels"]), []
        for path in sorted(folder.glob(f"{split}-*.webp")):
            with Image.open(path) as picture:
                parts.append(tiles(np.asarray(picture.convert("RGB")), TILES, height))
        arrays[f"{split}_images"] = np.concatenate(parts)[:number]
    return arrays


def few_of(arrays: Arrays) -> Arrays:
    """Few of the images, for a rehearsal: over 100 of one class, a head for GLAG, and pairs of the others."""
    found = dict(arrays)
    for split in SPLITS:
        labels = arrays[f"{split}_labels"].reshape(-1)
        each = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
        most = [(2 if label else 105) if split == "train" else 1 for label in range(len(each))]
        kept = np.concatenate([index[:n] for index, n in zip(each, most, strict=True)])
        found |= {f"{split}_{part}": arrays[f"{split}_{part}"][kept] for part in ("images", "labels")}
    return found


def noise() -> Arrays:
    """Images of noise with CIFAR-100-LT's counts at the head, for a rehearsal without the data."""
    random = np.random.RandomState(0)
    train, test = np.repeat(np.arange(100), [500] + [5] * 99), np.repeat(np.arange(100), 2)
    arrays: Arrays = {"train_labels": train, "test_labels": test}
    for split, labels in (("train", train), ("test", test)):
        arrays[f"{split}_images"] = random.randint(0, 256, (len(labels), 32, 32, 3)).astype(np.uint8)
    return arrays
