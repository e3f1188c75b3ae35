"""What a data set hands over: images in memory, or read when they are needed, with labels and how they are prepared."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ltcore.contract.imbalance import Imbalance

if TYPE_CHECKING:
    from PIL.Image import Image

#: Endings of files that Pillow reads with the extra ``heif``.
HEIF_SUFFIXES = (".heic", ".heif")


@cache
def _learn_heif() -> None:
    """Teach Pillow to read HEIC, once in each process, where pillow-heif is installed."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()


@dataclass(frozen=True)
class ArraySplit:
    """Images of one split, in memory.

    Attributes:
        images: [N, C, H, W] uint8.
        targets: [N] int64, from 0 to the number of classes less one.
    """

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def subset(self, index: Tensor) -> ArraySplit:
        """The images at `index` [M] int64; [M, H, W, C] in memory, which a loader on the CPU takes without a copy."""
        images = self.images.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
        return ArraySplit(images, self.targets[index])


class StreamedSplit(Protocol):
    """Images of one split that are read and decoded when they are needed, in worker processes (so it can be pickled).

    It may also have a method `identities`, as `FileSplit` has, by which a run notices that its images have changed.
    Without one, the images' names tell.

    Attributes:
        targets: [N] int64, from 0 to the number of classes less one.
    """

    @property
    def targets(self) -> Tensor:  # noqa: D102
        ...

    def __len__(self) -> int: ...

    def subset(self, index: Tensor) -> Self:
        """The images at `index` [M] int64."""
        ...

    def open(self, index: int) -> Image:
        """The image at `index`, opened by Pillow but not necessarily decoded, in whatever mode it is stored.

        Raises:
            OSError: it is missing, or no image.
        """
        ...

    def name(self, index: int) -> str:
        """How messages name the image at `index`, such as its path."""
        ...


@dataclass(frozen=True)
class FileSplit:
    """Images of one split, each a file.

    Attributes:
        root: the directory that `files` are relative to.
        files: [N] UTF-8 bytes, one NumPy array rather than N objects, so that workers share its memory.
        targets: [N] int64, from 0 to the number of classes less one.
    """

    root: Path
    files: NDArray[np.bytes_]
    targets: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def subset(self, index: Tensor) -> FileSplit:
        """The images at `index` [M] int64."""
        return replace(self, files=self.files[index.numpy()], targets=self.targets[index])

    def open(self, index: int) -> Image:
        """The image at `index`, opened by Pillow.

        Raises:
            OSError: the file is missing, or no image.
        """
        from PIL import Image

        name = self.name(index)
        if name.lower().endswith(HEIF_SUFFIXES):
            _learn_heif()
        return Image.open(name)

    def identities(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """What tells the images apart without reading them.

        Returns:
            [N] names, the same wherever the data lies, and [N] sizes in bytes.

        Raises:
            OSError: a file is missing.
        """
        root = os.fsencode(self.root)
        sizes = [os.stat(os.path.join(root, file)).st_size for file in self.files.tolist()]
        return self.files, np.array(sizes, dtype=np.int64)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.root / self.files[index].decode())


@dataclass(frozen=True)
class DataSplits:
    """A data set as `build_data` returns it; core then cuts the long tail and the held-out images.

    All its splits are of one kind, in memory (`ArraySplit`) or streamed (`StreamedSplit`).

    Attributes:
        train: the whole training split.
        test: the test split; no method ever sees it.
        val: the data set's own validation split, if it has one.
        class_names: one name per class, in label order.
        mean: per channel, on the scale 0..1.
        std: per channel, on the scale 0..1.
        transform: name of the set's usual preparation of images (`ltcore.data.transforms`); a recipe's
            ``data.transform.name`` replaces it.
        image_size: height and width in pixels that streamed images are brought to; None where the images in memory
            say it.
        crop_padding: pixels of zero padding for the random crop of training images; 0 for no crop.
        flip: whether training images are flipped left to right half of the time.
        imbalance: the long tail that the set has by definition (CIFAR-100-LT); a recipe's ``data.imbalance``
            replaces it.
        notes: what the user should be told of how the files were read, a sentence each (files that were ignored).
        grouped: whether images belong together in groups (of one patient) that no two splits may share; core then holds
            none out, which would part them.
    """

    train: ArraySplit | StreamedSplit
    test: ArraySplit | StreamedSplit
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    val: ArraySplit | StreamedSplit | None = None
    transform: str | None = None
    image_size: int | None = None
    crop_padding: int = 0
    flip: bool = False
    imbalance: Imbalance = field(default_factory=Imbalance)
    notes: tuple[str, ...] = ()
    grouped: bool = False
