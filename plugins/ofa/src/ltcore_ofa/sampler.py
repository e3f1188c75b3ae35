"""OFA's batch: tail images, then head images, in blocks of fixed size (sec. 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltcore import ClassPools, EpochBatches, RecipeError, draw_classes


@dataclass(frozen=True)
class Blocks:
    """What OFA's batches say of themselves (`ltcore.EpochBatches.layout`).

    Attributes:
        tail_rows: N_t.
    """

    tail_rows: int


def tail_rows(batch_size: int, augmented: int) -> int:
    """N_t, the tail images of a batch: of ``2 * N_t * (1 + N_a)`` rows, with those made, half are tail, half head.

    Raises:
        RecipeError: the batch size is not of that form.
    """
    unit = 2 * (1 + augmented)
    rows, rest = divmod(batch_size, unit)
    if rest or not rows:
        near = " or ".join(str(n) for n in (batch_size - rest, batch_size - rest + unit) if n)
        raise RecipeError(f"batch_size {batch_size} is not a multiple of {unit} = 2 * (1 + augmented); use {near}")
    return rows


class OFASampler:
    """Draws batches of two blocks, with replacement.

    Rows ``[0, N_t)`` are tail images, for each of which OFA makes ``N_a`` more rows; ``N_t * (1 + N_a)`` head images
    follow. The classes of both follow the epoch's class distribution, each block within its own classes.

    Args:
        training_targets: [N] int64 labels of the training split, on the CPU.
        num_classes: C.
        head_mask: [C] bool, on the CPU; the other classes are the tail.
        batch_size: rows that are trained on, ``2 * N_t * (1 + N_a)``.
        augmented: N_a, augmented samples a tail image, or 0.

    Raises:
        RecipeError: the batch size does not divide.
    """

    def __init__(
        self,
        training_targets: Tensor,
        num_classes: int,
        head_mask: Tensor,
        batch_size: int,
        augmented: int,
    ) -> None:
        self.batch_size, self.augmented = batch_size, augmented
        self.tail_rows = tail_rows(batch_size, augmented)
        self.pools = ClassPools(training_targets, num_classes)
        self._size = len(training_targets)
        self._head = head_mask & (self.pools.counts > 0)
        self._tail = ~head_mask & (self.pools.counts > 0)

    def steps_per_epoch(self) -> int:
        """An epoch has as many rows as the training split has images, rounded up to whole batches."""
        return -(-self._size // self.batch_size)

    def draw(self, steps: int, distribution: Tensor | None, generator: torch.Generator) -> EpochBatches:
        """See `ltcore.Sampler.draw`; without a distribution, every image of a block is equally likely.

        Raises:
            RecipeError: the distribution leaves nothing to the tail or to the head.
        """
        weights = self.pools.counts.double() if distribution is None else distribution.double().cpu()
        # The whole epoch is drawn and then cut, so that a shorter epoch is the beginning of a longer one.
        epoch, rows = self.steps_per_epoch(), self.tail_rows
        tail = draw_classes(self._within(weights, self._tail, "tail"), (epoch, rows), generator)
        head = draw_classes(self._within(weights, self._head, "head"), (epoch, rows * (1 + self.augmented)), generator)
        indices = self.pools.draw_images(torch.cat([tail, head], 1), generator)
        return EpochBatches(list(indices[:steps]), Blocks(rows))

    @staticmethod
    def _within(weights: Tensor, block: Tensor, name: str) -> Tensor:
        inside = weights * block
        if not bool((inside > 0).any()):
            raise RecipeError(f"the class distribution of this stage never draws a {name} class, and OFA needs both")
        return inside
