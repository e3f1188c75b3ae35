"""How a batch is laid out, and the class distributions that a recipe can name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ltcore.seeding import generator_for


@dataclass(frozen=True)
class EpochBatches:
    """The images of one epoch, batch by batch.

    Attributes:
        indices: for each batch, indices [B] int64 into the training split, on the CPU.
        layout: what the method of the sampler should know about every batch, such as the sizes of its blocks. It comes
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


class BatchSampler:
    """Batches for a plain ``torch.utils.data.DataLoader(batch_sampler=...)``, drawn as core draws them.

    The indices of an epoch are a function of `seed` and the epoch alone. A program that goes on in epoch e calls
    ``set_epoch(e)``, and no state is to be kept. Of several processes each takes its rows of every batch.

    Args:
        targets: [N] labels from 0, of the training images.
        batch_size: rows of a batch, over all processes.
        distribution: how often each class is drawn: ``instance`` (each image once per epoch, in random order),
            ``class_balanced``, ``square_root``, or [C] positive numbers on any scale.
        seed: of the draws.
        rank: which of several processes this is.
        world_size: how many there are.

    Raises:
        ValueError: the distribution is none, the labels are no labels, or there are more processes than rows.
    """

    def __init__(
        self,
        targets: Tensor | Sequence[int],
        batch_size: int,
        distribution: str | Tensor = "class_balanced",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        labels = torch.as_tensor(targets).detach().to("cpu", torch.int64)
        if labels.ndim != 1 or not len(labels) or int(labels.min()) < 0:
            raise ValueError("targets are labels [N] from 0, at least one")
        if not 0 <= rank < world_size <= batch_size:
            raise ValueError(f"rank {rank} of {world_size} processes does not suit batches of {batch_size} rows")
        counts = torch.bincount(labels)
        self.distribution = _shares(distribution, counts)
        self.seed, self.epoch, self.rank, self.world_size = seed, 0, rank, world_size
        self._sampler = PlainSampler(labels, len(counts), batch_size)

    @property
    def sampler(self) -> BatchSampler:
        """Itself: Lightning tells the epoch to the sampler that it finds inside of a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Draw those of this epoch, from 0, from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._sampler.steps_per_epoch()

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the epoch, each as indices."""
        generator = generator_for("cpu", self.seed, "batch sampler", self.epoch)
        for batch in self._sampler.draw(len(self), self.distribution, generator).indices:
            yield batch[self.rank :: self.world_size].tolist()


def _shares(distribution: str | Tensor, counts: Tensor) -> Tensor | None:
    if isinstance(distribution, str):
        if distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution '{distribution}' is none of {', '.join(DISTRIBUTIONS)}")
        named = DISTRIBUTIONS[distribution]
        found = None if named is None else named(counts)
    else:
        found = distribution.detach().cpu().double()
        if found.shape != counts.shape or not (found >= 0).all() or not 0 < float(found.sum()) < float("inf"):
            raise ValueError(
                f"distribution is [{len(counts)}] numbers, a share for each class, not {list(found.shape)}"
            )
    if found is not None and bool(((found > 0) & (counts == 0)).any()):
        label = int(((found > 0) & (counts == 0)).nonzero()[0])
        raise ValueError(f"class {label} shall be drawn, and has no image")
    return found
