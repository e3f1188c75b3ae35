"""What a data set hands over: uint8 images in memory, with labels, and how they are normalised and augmented."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ltcore.data.imbalance import Imbalance


@dataclass(frozen=True)
class ArraySplit:
    """Images of one split.

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
        """The images at `index` [M] int64."""
        return ArraySplit(self.images[index], self.targets[index])


@dataclass(frozen=True)
class DataSplits:
    """A data set as `build_data` returns it; core then cuts the long tail and the held-out images.

    Attributes:
        train: the whole training split.
        test: the test split; no method ever sees it.
        val: the data set's own validation split, if it has one.
        class_names: a name a class, in label order.
        mean: per channel, on the scale 0..1.
        std: per channel, on the scale 0..1.
        crop_padding: pixels of zero padding for the random crop of training images; 0 for no crop.
        flip: whether training images are flipped left to right half of the time.
        imbalance: the long tail that the set has by definition (CIFAR-100-LT); a recipe's ``data.imbalance``
            replaces it.
    """

    train: ArraySplit
    test: ArraySplit
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    val: ArraySplit | None = None
    crop_padding: int = 0
    flip: bool = False
    imbalance: Imbalance = field(default_factory=Imbalance)
