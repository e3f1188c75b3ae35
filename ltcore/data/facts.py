"""What is known of a data set without its files, and images that stand in for its own in a rehearsal."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltcore.data.image_files import IMAGENET_MEAN, IMAGENET_STD
from ltcore.data.imbalance import Imbalance
from ltcore.data.splits import ArraySplit, DataSplits
from ltcore.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_ENCODED = 8  # different JPEGs that stand for all images: decoding does not get faster by seeing one again
_QUALITY = 85


@dataclass(frozen=True)
class DataFacts:
    """What a data method may state without reading a file (`ltcore.Method.facts`).

    Attributes:
        class_counts: C training images a class, in label order, before ``data.imbalance`` and ``data.holdout``.
        test: number of test images.
        mean: per channel, on the scale 0..1.
        std: per channel, on the scale 0..1.
        image_size: height and width in pixels of the images in memory, or that streamed ones are brought to.
        val: number of images of the set's own validation split; 0 where it has none.
        stored: width and height in pixels of a typical file of the set; None where images are in memory.
        transform: as in `ltcore.data.splits.DataSplits`.
        crop_padding: as there.
        flip: as there.
        imbalance: as there.
        approximate: which of these are no exact figures, as a sentence; empty where all are.
    """

    class_counts: tuple[int, ...]
    test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    val: int = 0
    stored: tuple[int, int] | None = None
    transform: str | None = None
    crop_padding: int = 0
    flip: bool = False
    imbalance: Imbalance = field(default_factory=Imbalance)
    approximate: str = ""

    def with_counts(self, counts: tuple[int, ...]) -> DataFacts:
        """The same with other class counts, which are no approximation."""
        return replace(self, class_counts=counts, approximate="")

    def splits(self) -> DataSplits:
        """Noise in place of the images: as many, as large, of the same classes, in memory or to be decoded."""
        train = np.repeat(np.arange(len(self.class_counts)), self.class_counts)
        return DataSplits(
            train=self._split(train),
            test=self._split(_evenly(self.test, len(self.class_counts))),
            val=self._split(_evenly(self.val, len(self.class_counts))) if self.val else None,
            class_names=tuple(str(label) for label in range(len(self.class_counts))),
            mean=self.mean,
            std=self.std,
            transform=self.transform,
            image_size=None if self.stored is None else self.image_size,
            crop_padding=self.crop_padding,
            flip=self.flip,
            imbalance=self.imbalance,
        )

    def _split(self, labels: NDArray[np.int64]) -> ArraySplit | EncodedSplit:
        targets = torch.from_numpy(labels.astype(np.int64))
        if self.stored is not None:
            return EncodedSplit(encoded_images(*self.stored), targets)
        shape = (len(targets), self.image_size, self.image_size, len(self.mean))
        noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return ArraySplit(torch.from_numpy(noise).permute(0, 3, 1, 2), targets)


@dataclass(frozen=True)
class EncodedSplit:
    """A few JPEGs in memory that stand for all images of a split, so that decoding takes its time.

    Attributes:
        encoded: the files' contents.
        targets: [N] int64.
    """

    encoded: tuple[bytes, ...]
    targets: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def subset(self, index: Tensor) -> EncodedSplit:
        """The images at `index` [M] int64."""
        return replace(self, targets=self.targets[index])

    def open(self, index: int) -> Image:
        """One of the JPEGs, opened by Pillow and not decoded."""
        from PIL import Image

        return Image.open(io.BytesIO(self.encoded[index % len(self.encoded)]))

    def name(self, index: int) -> str:
        """The image's place in its split."""
        return f"synthetic image {index}"


def encoded_images(width: int, height: int) -> tuple[bytes, ...]:
    """JPEGs of smooth noise with some grain, about as many bytes a pixel as a photograph's.

    Args:
        width: in pixels.
        height: in pixels.
    """
    from PIL import Image

    random, files = np.random.default_rng(0), []
    for _ in range(_ENCODED):
        coarse = random.integers(0, 256, (max(height // 16, 1), max(width // 16, 1), 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height)), dtype=np.float32)
        pixels = np.clip(smooth + random.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY)
        files.append(file.getvalue())
    return tuple(files)


def photographs(counts: tuple[int, ...], image_size: int = 224) -> DataFacts:
    """Facts of a set of which only its class counts are known: files of 500 x 375, as many test images as a fifth."""
    return DataFacts(
        counts,
        test=max(1, sum(counts) // 5),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        image_size=image_size,
        stored=(500, 375),
        transform="imagenet",
        approximate="Only the class counts are known: files of 500 x 375 pixels and a fifth as many test images are "
        "assumed",
    )


def published_counts(name: str) -> tuple[int, ...]:
    """Training images a class of a published long-tailed set, in label order, as its split list has them."""
    return tuple(map(int, Path(__file__).with_name(f"{name}_counts.txt").read_text().split()))


def fitted_counts(num_classes: int, total: int, largest: int, smallest: int) -> tuple[int, ...]:
    """Class counts on a Zipf-Mandelbrot curve, ``largest * (1 + rank / b) ** -a``, with a given total and both ends.

    The curve goes through both ends for any ``b``; which one has the total is found by bisection.

    Args:
        num_classes: C.
        total: images in all.
        largest: images of the first class.
        smallest: images of the last class.

    Returns:
        C counts, not increasing but for the few images that rounding leaves over, which the second class and those
        after it have one more or less of each.
    """
    rank = np.arange(num_classes)

    def curve(log_b: float) -> NDArray[np.float64]:
        b = np.exp(log_b)
        a = np.log(largest / smallest) / np.log1p((num_classes - 1) / b)
        counts: NDArray[np.float64] = largest * (1 + rank / b) ** -a
        return counts

    low, high = -20.0, 20.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if curve(middle).sum() < total else (low, middle)
    counts = np.rint(curve(high)).astype(np.int64)
    over = total - int(counts.sum())
    counts[1 : 1 + abs(over)] += np.sign(over)
    return tuple(counts.tolist())


def read_counts(path: Path) -> tuple[int, ...]:
    """Class counts from a JSON file: a list, an object of class names, or an object with ``class_counts``.

    Raises:
        DataError: the file cannot be read, or holds no counts.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"--counts {path}: it cannot be read as JSON ({error})") from error
    if isinstance(content, dict):
        content = next((content[key] for key in ("class_counts", "counts") if key in content), content)
    if isinstance(content, dict):
        content = list(content.values())
    whole = isinstance(content, list) and all(type(count) is int and count > 0 for count in content)
    if not whole or len(content) < 2:
        raise DataError(
            f"--counts {path}: it holds no class counts; write a list of the training images of each class in label "
            'order, [120, 40, 8], or an object {"class_counts": [...]} or {"cat": 120, "dog": 40}'
        )
    return tuple(content)


def _evenly(images: int, classes: int) -> NDArray[np.int64]:
    return np.sort(np.arange(images) % classes)
