"""What a trained model takes images for: images of any kind, prepared as the run's evaluation prepared its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltcore.contract.model import evaluating
from ltcore.contract.splits import ArraySplit
from ltcore.data.image_files import file_split, find_images
from ltcore.data.loader import InMemoryLoader, Loader
from ltcore.data.streaming import ArrayImages, Broken, StreamingLoader
from ltcore.errors import DataError
from ltcore.evaluation.outputs import image_logits
from ltcore.evaluation.unsure import Thresholds

if TYPE_CHECKING:
    from PIL.Image import Image

    from ltcore.contract.model import Model
    from ltcore.contract.splits import StreamedSplit
    from ltcore.evaluation.calibrated import Description

Images: TypeAlias = "str | Path | Image | Sequence[str | Path] | Sequence[Image] | NDArray[np.uint8] | Tensor"


@dataclass(frozen=True)
class Predictions:
    """What a model takes N images for.

    Attributes:
        names: what the images are called: their paths, or ``image 0``.
        logits: [N, C] float32, calibrated.
        class_names: C names, in label order.
        thresholds: below which probabilities predictions are unsure; None where the run's recipe has no `unsure`.
    """

    names: tuple[str, ...]
    logits: NDArray[np.float32]
    class_names: tuple[str, ...]
    thresholds: Thresholds | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    @property
    def labels(self) -> NDArray[np.int64]:
        """[N], the likeliest class of each."""
        labels: NDArray[np.int64] = np.argmax(self.logits, axis=1)
        return labels

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """[N, C], softmax of the logits."""
        return torch.from_numpy(self.logits).softmax(1).numpy()

    @property
    def unsure(self) -> NDArray[np.bool_] | None:
        """[N] whether each prediction is below the threshold of its class; None where the run has no thresholds."""
        if self.thresholds is None:
            return None
        probability, labels = torch.from_numpy(self.logits).double().softmax(1).max(1)
        found: NDArray[np.bool_] = self.thresholds.unsure(labels, probability).numpy()
        return found

    def top(self, count: int = 5) -> list[list[tuple[str, float]]]:
        """For each image the likeliest classes with their probabilities, the likeliest first."""
        values, labels = torch.from_numpy(self.probabilities).topk(min(count, len(self.class_names)))
        return [
            [(self.class_names[label], value) for label, value in zip(*row, strict=True)]
            for row in zip(labels.tolist(), values.tolist(), strict=True)
        ]


def predict(model: Model, description: Description, images: Images, batch_size: int) -> Predictions:
    """What the model takes images for.

    Args:
        model: the model, in eval mode.
        description: how images are prepared, and the classes.
        images: see `SavedRun.predict`.
        batch_size: images at a time.

    Raises:
        DataError: an image is missing, cannot be decoded, or is no image.
    """
    names, loader = _loader(description, images, next(model.parameters()).device)
    crops = description.transform.crops
    with evaluating(model):
        batches = loader.eval_batches(batch_size, crops > 1)
        logits = [image_logits(model, batch, crops).cpu().numpy() for batch in batches]
    whole = np.concatenate(logits or [_no_logits(description)])
    return Predictions(names, whole, description.class_names, description.unsure)


def predict_files(
    model: Model, description: Description, files: Sequence[str], batch_size: int, workers: int
) -> Iterator[tuple[Predictions, list[Broken]]]:
    """What the model takes files for, a batch at a time; memory does not grow with their number.

    Args:
        model: the model, in eval mode.
        description: how images are prepared, and the classes.
        files: paths of images.
        batch_size: images at a time.
        workers: processes that decode ahead of the model.

    Yields:
        The predictions of a batch, in the order of the files, and what of it cannot be decoded.

    Raises:
        DataError: the model's images are not of one or three channels.
        RunError: a process that decodes died.
    """
    split = file_split(Path(), files, [0] * len(files))
    loader = streaming(description, split, workers, next(model.parameters()).device)
    start, crops = 0, description.transform.crops
    with evaluating(model):
        for images, broken in loader.readable_batches(batch_size):
            count = len(images) // crops + len(broken)
            unread = {found.index for found in broken}
            names = tuple(files[index] for index in range(start, start + count) if index not in unread)
            logits = image_logits(model, images, crops).cpu().numpy() if names else _no_logits(description)
            yield Predictions(names, logits, description.class_names, description.unsure), broken
            start += count


def _no_logits(description: Description) -> NDArray[np.float32]:
    return np.empty((0, len(description.class_names)), dtype=np.float32)


def listed_files(paths: Sequence[str | Path]) -> Iterator[str]:
    """The files themselves, and of folders the images in them at any depth, sorted, in the order given.

    Raises:
        DataError: a path is not there, or a folder holds no image.
    """
    for path in paths:
        if os.path.isdir(path):
            found = find_images(Path(path)).files
            if not found:
                raise DataError(f"{path}: there is no image in this folder")
            yield from (os.path.join(path, name) for name in found)
        elif os.path.exists(path):
            yield str(path)
        else:
            raise DataError(f"{path}: there is no such file or folder")


def _loader(description: Description, images: Images, device: torch.device) -> tuple[tuple[str, ...], Loader]:
    given: Any = [images] if isinstance(images, str | Path) or hasattr(images, "getbands") else images
    if isinstance(given, np.ndarray | Tensor):
        split = ArraySplit(_pixels(given), torch.zeros(len(given), dtype=torch.int64))
        names = tuple(f"image {number}" for number in range(len(split)))
        size, channels = description.transform.image_size, len(description.mean)
        plain = description.transform.whole_batches and description.transform.crops == 1
        if plain and split.images.shape[1:] == (channels, size, size):
            return names, InMemoryLoader(split, description.mean, description.std, device=device)
        return names, streaming(description, ArrayImages(split), 0, device)
    if all(isinstance(image, str | Path) for image in given):
        files = tuple(listed_files(given))
        return files, streaming(description, file_split(Path(), files, [0] * len(files)), 0, device)
    if all(hasattr(image, "getbands") for image in given):
        pictures = PillowImages(tuple(given))
        return tuple(map(pictures.name, range(len(pictures)))), streaming(description, pictures, 0, device)
    raise DataError("images should be paths, Pillow images, or pixels: an array [N, H, W, channels] of uint8")


def streaming(
    description: Description, split: StreamedSplit, workers: int, device: torch.device | str
) -> StreamingLoader:
    """Images one by one, prepared as evaluation prepares them.

    Raises:
        DataError: the model's images are not of one or three channels.
    """
    if len(description.mean) not in (1, 3):
        size = description.transform.image_size
        raise DataError(
            f"the run's images have {len(description.mean)} channels, which files cannot hold; predict an array of "
            f"uint8 [N, {size}, {size}, {len(description.mean)}]"
        )
    mean, std = description.mean, description.std
    return StreamingLoader(split, description.transform, mean, std, workers, device, training=False)


def _pixels(given: NDArray[Any] | Tensor) -> Tensor:
    """[N, C, H, W] uint8 of an array [N, H, W] or [N, H, W, C], or of a tensor [N, C, H, W].

    Raises:
        DataError: it is of another type or shape.
    """
    pixels: NDArray[Any] | None
    if isinstance(given, Tensor):
        pixels = given.cpu().movedim(1, -1).numpy() if given.ndim == 4 else None
    else:
        pixels = given[..., None] if given.ndim == 3 else given
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise DataError(
            f"pixels are {given.dtype} of shape {tuple(given.shape)}, but should be uint8: an array [N, H, W] or "
            "[N, H, W, channels], or a tensor [N, channels, H, W]"
        )
    # Written to by nobody, but PyTorch warns of arrays that are read-only.
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class PillowImages:
    """Pillow images as a `StreamedSplit`."""

    images: tuple[Image, ...]

    @property
    def targets(self) -> Tensor:
        """[N] int64; nothing is known."""
        return torch.zeros(len(self.images), dtype=torch.int64)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def subset(self, index: Tensor) -> PillowImages:
        """The images at `index` [M] int64."""
        return PillowImages(tuple(self.images[position] for position in index.tolist()))

    def open(self, index: int) -> Image:
        """A copy of the image at `index`, which the transform may change and close."""
        return self.images[index].copy()

    def name(self, index: int) -> str:
        """The image's place."""
        return f"image {index}"
