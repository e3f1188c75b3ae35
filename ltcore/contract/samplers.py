"""How a batch is laid out, and the class distributions that a recipe can name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class EpochBatches:
    """The images of one epoch, batch by batch.

    Attributes:
        indices: for each batch, indices [B] int64 into the training split, on the CPU.
        layout: what the method of the sampler should know about every batch, such as the sizes of its blocks; it comes
            back in `ltcore.Batch` and `ltcore.Features`.
    """

    indices: list[Tensor]
    layout: object = None


class Sampler(Protocol):
    """Draws the batches of an epoch. A sampler keeps no state: the generator is all the randomness there is."""

    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""

    def draw(self, steps: int, distribution: Tensor | None, generator: torch.Generator) -> EpochBatches:
        """The first `steps` batches of an epoch.

        Args:
            steps: how many are wanted, at most `steps_per_epoch` (the last epoch of a stage may be cut short).
            distribution: [C], how often each class is drawn; None for instance-balanced.
            generator: a CPU generator seeded for this stage and epoch.
        """


def class_balanced_distribution(class_counts: Tensor) -> Tensor:
    """Every class equally often: 1 / C. [C] to [C] float64."""
    return torch.full((len(class_counts),), 1 / len(class_counts), dtype=torch.float64)


def square_root_distribution(class_counts: Tensor) -> Tensor:
    """Classes in proportion to the square root of their counts. [C] to [C] float64."""
    root = class_counts.double().sqrt()
    return root / root.sum()


#: What ``sampler:`` of a stage can name beside a method; None is instance-balanced.
DISTRIBUTIONS = {
    "instance": None,
    "class_balanced": class_balanced_distribution,
    "square_root": square_root_distribution,
}


class ClassPools:
    """Images by class, to draw from a chosen class in one vectorised step.

    Args:
        targets: [N] int64 labels of the training split, on the CPU.
        num_classes: number of classes C.
    """

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        self.counts = torch.bincount(targets, minlength=num_classes)
        self._order = torch.argsort(targets, stable=True)
        self._start = torch.cumsum(self.counts, 0) - self.counts

    def draw_images(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """One image of each given class, uniformly and with replacement. Any shape of class labels to indices."""
        counts = self.counts[classes]
        uniform = torch.rand(classes.shape, generator=generator, dtype=torch.float64)
        # rand() is below 1, but the product can round up to `counts`.
        rank = torch.minimum((uniform * counts).long(), counts - 1)
        return self._order[self._start[classes] + rank]


def draw_classes(distribution: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Class labels drawn with replacement: [C] probabilities (any positive scale) to int64 of `shape`.

    Classes of probability 0 are never drawn.
    """
    cumulative = torch.cumsum(distribution.double(), 0)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64) * cumulative[-1]
    last = int(torch.nonzero(distribution)[-1])  # guards against a product that rounds up to the total
    return torch.searchsorted(cumulative, uniform, right=True).clamp_(max=last)


class PlainSampler:
    """Core's layout: a batch is any `batch_size` images.

    Without a distribution, an epoch is a permutation of the images. With one, a class is drawn for each place and an
    image within the class, both with replacement.

    Args:
        targets: [N] int64, on the CPU.
        num_classes: number of classes C.
        batch_size: rows in a batch. The last batch of an epoch may be smaller, but a single left-over image is not
            a batch: batch norm has no variance to take from it.
    """

    def __init__(self, targets: Tensor, num_classes: int, batch_size: int) -> None:
        self.size, self.batch_size = len(targets), batch_size
        self.pools = ClassPools(targets, num_classes)

    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self.size, self.batch_size)
        return max(1, full + (rest > 1))

    def draw(self, steps: int, distribution: Tensor | None, generator: torch.Generator) -> EpochBatches:
        """See `Sampler.draw`."""
        if distribution is None:
            order = torch.randperm(self.size, generator=generator)
        else:
            order = self.pools.draw_images(draw_classes(distribution, (self.size,), generator), generator)
        return EpochBatches(list(torch.split(order[: steps * self.batch_size], self.batch_size)))
