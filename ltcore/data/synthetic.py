"""Synthetic images with any class counts and of any size, for smoke tests and benchmarks."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from ltcore.contract.facts import DataFacts
from ltcore.contract.hook import hookimpl
from ltcore.contract.method import Method, Options
from ltcore.contract.splits import ArraySplit, DataSplits

_WAVES = 4  # cosines a side in a class's pattern: smooth, so that a crop or a small network still sees it
_CHUNK = 1 << 22  # values drawn at a time, so that 224-pixel sets do not need several times their size


class SyntheticOptions(Options):
    """Options of `Synthetic`."""

    class_counts: list[Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    """Training images of each class; replaces `num_classes` and `max_count`."""
    num_classes: int = Field(default=10, ge=1)
    """Number of classes, each with `max_count` images."""
    max_count: int = Field(default=100, ge=1)
    """Training images of each class; the recipe's `data.imbalance` cuts the tail."""
    image_size: int = Field(default=16, ge=1)
    """Height and width in pixels."""
    channels: int = Field(default=3, ge=1)
    """Channels."""
    test_per_class: int = Field(default=20, ge=1)
    """Test images of each class."""
    noise: float = Field(default=0.25, ge=0)
    """Standard deviation of the noise on the scale 0..1; the patterns have 0.2."""
    seed: int = Field(default=0, ge=0)
    """Seed of patterns and noise."""


class Synthetic(Method[SyntheticOptions]):
    """A smooth random pattern for each class, plus Gaussian noise: learnable, and the same on every machine."""

    summary = "smooth random patterns plus noise; any class counts and image size; generated, public domain"

    @hookimpl
    def build_data(self) -> DataSplits:
        """Training and test images; a class's images do not depend on how many the other classes have."""
        o = self.options
        counts = o.class_counts or [o.max_count] * o.num_classes
        patterns = class_patterns(len(counts), o.image_size, o.channels, o.seed)
        return DataSplits(
            train=_noisy(patterns, counts, o.noise, (o.seed, 1)),
            test=_noisy(patterns, [o.test_per_class] * len(counts), o.noise, (o.seed, 2)),
            class_names=tuple(str(label) for label in range(len(counts))),
            mean=(0.5,) * o.channels,
            std=(0.25,) * o.channels,
        )

    def facts(self) -> DataFacts:
        """What the options say."""
        o = self.options
        counts = tuple(o.class_counts or [o.max_count] * o.num_classes)
        mean, std = (0.5,) * o.channels, (0.25,) * o.channels
        return DataFacts(counts, o.test_per_class * len(counts), mean, std, image_size=o.image_size)


def class_patterns(num_classes: int, size: int, channels: int, seed: int) -> NDArray[np.float32]:
    """A pattern for each class: low cosines with random weights, mean 0.5 and standard deviation 0.2.

    Returns:
        [num_classes, size, size, channels] float32; not clipped to 0..1.
    """
    waves = np.cos(np.pi * np.outer((np.arange(size) + 0.5) / size, np.arange(_WAVES)))  # [size, W]
    # One generator a class: class 3 looks the same among 5 classes as among 500.
    weights = np.stack(
        [np.random.default_rng((seed, 0, c)).normal(size=(_WAVES, _WAVES, channels)) for c in range(num_classes)]
    )
    patterns = np.einsum("yk,xl,nklc->nyxc", waves, waves, weights, optimize=True)
    patterns -= patterns.mean(axis=(1, 2, 3), keepdims=True)
    spread = patterns.std(axis=(1, 2, 3), keepdims=True)
    scaled: NDArray[np.float32] = (0.5 + 0.2 * patterns / np.where(spread > 0, spread, 1)).astype(np.float32)
    return scaled


def _noisy(patterns: NDArray[Any], counts: list[int], noise: float, seed: tuple[int, int]) -> ArraySplit:
    """`counts[c]` images of class c, [N, C, H, W] uint8 (a view of [N, H, W, C] memory), class by class."""
    shape = patterns.shape[1:]
    images = np.empty((sum(counts), *shape), dtype=np.uint8)
    step = max(1, _CHUNK // patterns[0].size)
    end = 0
    for label, count in enumerate(counts):
        random = np.random.default_rng((*seed, label))
        start, end = end, end + count
        for first in range(start, end, step):
            last = min(first + step, end)
            drawn = random.standard_normal((last - first, *shape), dtype=np.float32)
            np.clip(np.rint(255 * (patterns[label] + noise * drawn)), 0, 255, out=drawn)
            images[first:last] = drawn
    targets = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return ArraySplit(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(targets))
