"""Batches from images in memory: cropped, flipped and normalised a whole batch at a time, on the device.

Images stay uint8, [N, H, W, C] in memory. Crop and flip together are one lookup of pixels, and nothing here waits for a
GPU: no ``.item()``, no boolean masks, and indices travel through pinned memory.

Three ways of cropping were measured (``benchmarks/loader.py --crops``; 128 x 3 x 32 x 32, two CPU cores). A lookup of
flat pixel numbers takes 0.25 ms, an advanced index with rows and columns 0.9 ms, slicing image by image 0.9 ms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from ltcore import ranks
from ltcore.contract.splits import ArraySplit
from ltcore.data.image_functions import ImageChanges, ImageFunctions, OpenedFunctions

#: Elements that PyTorch works on in one thread.
_ONE_THREAD = 32_000
_ALL = slice(None)


class Loader(Protocol):
    """Where a split's batches come from: `InMemoryLoader`, or `ltcore.data.streaming.StreamingLoader`.

    Attributes:
        device: where batches are.
        generator_device: where the generators of training batches are.
    """

    device: torch.device
    generator_device: torch.device

    def __len__(self) -> int:
        """Number of images."""

    def train_batches(
        self,
        indices: Iterable[Tensor],
        generators: Iterable[torch.Generator],
        changes: ImageChanges | None = None,
    ) -> Iterator[Tensor]:
        """Training images, augmented, batch by batch.

        Args:
            indices: for each batch [B] int64, on the CPU.
            generators: for each batch one on `generator_device`; all the randomness there is. Both may be read ahead.
            changes: what methods do to the images, once they are augmented; None for nothing.

        Yields:
            [B, C, H, W] float32, normalised, channels-last. Of several processes each gets its part of every batch
            (`ltcore.ranks.part`), drawn as if it was alone.
        """

    def eval_batches(self, batch_size: int, crops: bool = False) -> Iterator[Tensor]:
        """All images in order, without augmentation: [B, C, H, W] float32, normalised, channels-last.

        With `crops` each image's V test crops in its place. They are [V * B, C, H, W], the first crop of all images,
        the second of all, and so on. Only where the transform has more than one. Several processes take the batches in
        turns.
        """

    def eval_batch(self, start: int, stop: int, crops: bool = False) -> Tensor:
        """The images from `start` up to `stop` alone, as `eval_batches` gives them."""

    def pick(
        self,
        indices: Tensor,
        generator: torch.Generator | None = None,
        functions: ImageFunctions | None = None,
        augmented: bool = False,
    ) -> Tensor:
        """Any images, in any order.

        Args:
            indices: [M] int64, on the CPU.
            generator: on `generator_device`; where `functions` are given or images are augmented.
            functions: what is done to each image before it is normalised; None for nothing.
            augmented: prepare them as training does; else as evaluation does.

        Returns:
            [M, C, H, W] float32, normalised, channels-last.
        """

    def end_workers(self) -> None:
        """End the processes that stay between passes; the next pass starts them again."""


class Normalizer:
    """Makes uint8 images float32, with mean 0 and standard deviation 1 a channel.

    Args:
        mean: per channel, on the scale 0..1.
        std: per channel, on the scale 0..1.
        width: width of the images in pixels.
        device: where the images are.
        one_thread: on the CPU, leave the other cores to those who decode.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], width: int, device: torch.device, one_thread: bool = False
    ) -> None:
        self._one_thread = one_thread and device.type == "cpu"
        center, spread = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        # Repeated along a row of pixels: loops over W * C values vectorise, loops over C = 3 do not (six times slower).
        self._scale = (1 / (255 * spread)).float().repeat(width).to(device)
        self._shift = (-center / spread).float().repeat(width).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] uint8, [B, H, W, C] in memory, to float32, laid out alike."""
        size, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(size * height, width * channels)
        if self._one_thread:
            # Few rows at a time stay in the cache between the operations, and are too few for PyTorch to share out.
            out = torch.empty(rows.shape)
            few = max(1, _ONE_THREAD // (width * channels))
            for part, done in zip(torch.split(rows, few), torch.split(out, few), strict=True):
                done.copy_(part).mul_(self._scale).add_(self._shift)
        else:
            out = rows.float().mul_(self._scale).add_(self._shift)
        return out.view(size, height, width, channels).permute(0, 3, 1, 2)


class InMemoryLoader:
    """All images of a split, on the device.

    Args:
        split: images [N, C, H, W] uint8 and targets [N]. Memory laid out as [N, H, W, C] is not copied on the CPU.
        mean: per channel, on the scale 0..1.
        std: per channel, on the scale 0..1.
        crop_padding: pixels of zero padding on each side for the random crop; 0 for no crop.
        flip: whether training images are flipped left to right half of the time.
        device: where images are kept and batches are made.
        cropped: gives the images' test crops, where the transform has several: they are cut from larger images.
    """

    def __init__(
        self,
        split: ArraySplit,
        mean: Sequence[float],
        std: Sequence[float],
        crop_padding: int = 0,
        flip: bool = False,
        device: torch.device | str = "cpu",
        cropped: Loader | None = None,
    ) -> None:
        self._cropped = cropped
        self.device = self.generator_device = torch.device(device)
        self.targets = split.targets.to(self.device)
        self._targets = split.targets
        self.crop_padding, self.flip = crop_padding, flip
        self._images = split.images.permute(0, 2, 3, 1).contiguous().to(self.device)
        self._normalise = Normalizer(mean, std, self._images.shape[2], self.device)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def train_batch(
        self,
        indices: Tensor,
        generator: torch.Generator,
        functions: OpenedFunctions | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Training images, augmented.

        Args:
            indices: [B] int64, on the CPU.
            generator: on the loader's device; all the randomness there is.
            functions: what methods do to the images; None for nothing.
            chosen: [B, K], which of the functions act on which row; None where all act on all.

        Returns:
            [B, C, H, W] float32, normalised, channels-last.
        """
        rows = ranks.part(len(indices))
        images = self._augmented(indices, generator, rows)
        if functions is not None:
            images = self._changed(images, indices, generator, functions, chosen, rows)
        return self._normalise(images)

    def _plain(self, indices: Tensor) -> Tensor:
        if self.device.type == "cuda":
            indices = indices.pin_memory().to(self.device, non_blocking=True)
        return self._images.index_select(0, indices).permute(0, 3, 1, 2)

    def _augmented(self, indices: Tensor, generator: torch.Generator, rows: slice = _ALL) -> Tensor:
        """Those `rows` [B, C, H, W] uint8 on the device, cropped and flipped; what is drawn is drawn for all."""
        images = self._plain(indices[rows])
        size, padding = len(indices), self.crop_padding
        if padding or self.flip:
            # Both are always drawn: switching the flip off leaves the crops as they were.
            offsets = torch.randint(2 * padding + 1, (2, size), generator=generator, device=self.device)
            coin = torch.randint(2, (size,), generator=generator, device=self.device) * self.flip
            images = crop_flip(images, offsets[0, rows], offsets[1, rows], coin[rows], padding)
        return images

    def _changed(
        self,
        images: Tensor,
        indices: Tensor,
        generator: torch.Generator,
        functions: OpenedFunctions,
        chosen: Tensor | None,
        rows: slice = _ALL,
    ) -> Tensor:
        """The images after the functions, which work on the CPU; the seeds are drawn behind all else of the batch."""
        seeds = torch.randint(2**62, (len(indices),), generator=generator, device=self.device)[rows].tolist()
        targets, which = self._targets[indices[rows]].tolist(), None if chosen is None else chosen[rows].tolist()
        images = images.to("cpu", copy=True)
        for row, (target, seed) in enumerate(zip(targets, seeds, strict=True)):
            images[row] = functions(images[row], target, seed, None if which is None else which[row])
        return images.to(self.device)

    def train_batches(
        self,
        indices: Iterable[Tensor],
        generators: Iterable[torch.Generator],
        changes: ImageChanges | None = None,
    ) -> Iterator[Tensor]:
        """See `Loader.train_batches`; each batch is made when it is asked for."""
        if changes is None:
            return map(self.train_batch, indices, generators)
        functions = OpenedFunctions(changes.functions.pickled)
        batches = zip(indices, generators, changes.rows, strict=False)
        return (self.train_batch(index, generator, functions, chosen) for index, generator, chosen in batches)

    def pick(
        self,
        indices: Tensor,
        generator: torch.Generator | None = None,
        functions: ImageFunctions | None = None,
        augmented: bool = False,
    ) -> Tensor:
        """See `Loader.pick`."""
        drawn = generator or torch.Generator(self.device)
        images = self._augmented(indices, drawn) if augmented else self._plain(indices)
        if functions is not None:
            images = self._changed(images, indices, drawn, OpenedFunctions(functions.pickled), None)
        return self._normalise(images)

    def eval_batch(self, start: int, stop: int, crops: bool = False) -> Tensor:
        """The images from `start` up to `stop`, as they are: [B, C, H, W] float32, normalised, channels-last."""
        if crops:
            assert self._cropped is not None
            return self._cropped.eval_batch(start, stop, crops)
        return self._normalise(self._images[start:stop].permute(0, 3, 1, 2))

    def eval_batches(self, batch_size: int, crops: bool = False) -> Iterator[Tensor]:
        """All images in order, as they are: [B, C, H, W] float32, normalised, channels-last."""
        if crops:
            assert self._cropped is not None
            return self._cropped.eval_batches(batch_size, crops)
        starts = range(0, len(self), batch_size)[ranks.rank() :: ranks.size()]
        return (self.eval_batch(start, start + batch_size) for start in starts)

    def end_workers(self) -> None:
        """There are none: test crops are decoded by processes that end with their pass."""


def crop_flip(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pad with zeros, crop to the old size, and flip left to right: each image in its own way, all in one lookup.

    Args:
        images: [B, C, H, W], of any type.
        dy: [B] integers, 0..2 * padding; the top row of the crop in the padded image. `padding` is the middle.
        dx: [B] integers, 0..2 * padding; the left column of the crop in the padded image.
        flip: [B], 1 or True for images to flip after the crop.
        padding: pixels of zeros on each side.

    Returns:
        [B, C, H, W], [B, H, W, C] in memory (channels-last).
    """
    size, channels, height, width = images.shape
    device = images.device
    padded = pad(images.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    rows, columns = height + 2 * padding, width + 2 * padding
    # int32: half the memory traffic of int64, enough for 2**31 pixels a batch.
    first = torch.arange(0, size * rows * columns, rows * columns, dtype=torch.int32, device=device)
    y = torch.arange(height, dtype=torch.int32, device=device) + dy.int()[:, None]
    x = torch.arange(width, dtype=torch.int32, device=device)
    x = torch.where(flip.bool()[:, None], width - 1 - x, x) + dx.int()[:, None]
    pixels = (first[:, None] + y * columns)[:, :, None] + x[:, None, :]  # [B, H, W]
    cropped = padded.reshape(-1, channels).index_select(0, pixels.view(-1))
    return cropped.view(size, height, width, channels).permute(0, 3, 1, 2)
