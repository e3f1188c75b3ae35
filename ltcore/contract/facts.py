"""What is known of a data set without its files, and images that stand in for its own in a rehearsal."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltcore.contract.imbalance import Imbalance
from ltcore.contract.splits import ArraySplit, DataSplits

if TYPE_CHECKING:
    from PIL.Image import Image

_ENCODED = 8  # different JPEGs that stand for all images: decoding does not get faster by seeing one again
_QUALITY = 85


@dataclass(frozen=True)
class DataFacts:
    """What a data method may state without reading a file (`ltcore.Method.facts`).

    Attributes:
        class_counts: C training images per class, in label order, before ``data.imbalance`` and ``data.holdout``.
        test: number of test images.
        mean: per channel, on the scale 0..1.
        std: per channel, on the scale 0..1.
        image_size: height and width in pixels of the images in memory, or that streamed ones are brought to.
        val: number of images of the set's own validation split; 0 where it has none.
        stored: width and height in pixels of a typical file of the set; None where images are in memory.
        transform: as in `ltcore.contract.splits.DataSplits`.
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


def _evenly(images: int, classes: int) -> NDArray[np.int64]:
    return np.sort(np.arange(images) % classes)
