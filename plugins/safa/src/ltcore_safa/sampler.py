"""SAFA's batch: same-class pairs, head classes first, then tail classes (sec. 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ltcore import EpochBatches, PlainSampler, RecipeError, draw_classes


@dataclass(frozen=True)
class Layout:
    """The blocks of a batch, in rows and in this order; between two blocks of a pair, row r belongs to row r.

    First and second images of `head_pairs` pairs, first and second images of `tail_pairs` pairs, and what is left: a
    pair of either kind where the shares do not come out even, and a single image where the batch size is odd.

    Attributes:
        head_pairs: H, at least 1.
        tail_pairs: T, at least 1.
        batch_size: B, at least ``2 H + 2 T``.
        spare_head: the chance that the pair that is left is of a head class; 0 where none is left.
    """

    head_pairs: int
    tail_pairs: int
    batch_size: int
    spare_head: float

    @property
    def spare_pairs(self) -> int:
        """0 or 1."""
        return self.batch_size // 2 - self.head_pairs - self.tail_pairs


def lay_out(batch_size: int, head_share: float) -> Layout:
    """The layout that gives head classes their share of the rows.

    The blocks take whole pairs, and the spare pair makes up for the rounding, on average. A block has one pair at
    least, also where its share is smaller.

    Args:
        batch_size: at least 4.
        head_share: the head classes' share of the rows, in (0, 1).
    """
    pairs = batch_size // 2
    wanted = pairs * head_share
    head = min(max(math.floor(wanted + 1e-9), 1), pairs - 1)
    tail = min(max(math.floor(pairs - wanted + 1e-9), 1), pairs - head)
    spare = head + tail < pairs
    return Layout(head, tail, batch_size, min(max(wanted - head, 0.0), 1.0) if spare else 0.0)


class PairSampler:
    """Core's plain batches before SAFA starts, batches of same-class pairs from then on.

    Classes follow the epoch's distribution: a pair's class is drawn from it, then two different images of the class;
    the only image of a class makes a pair with itself. Without a distribution every image is equally likely. An epoch
    has as many batches as a plain one, and from the start on every batch is full.

    Args:
        training_targets: [N] int64 labels of the training split, on the CPU.
        num_classes: C.
        head_mask: [C] bool, on the CPU; the other classes are the tail.
        batch_size: B, at least 4.
        active: says whether SAFA has started in the epoch that is drawn.
    """

    def __init__(
        self,
        training_targets: Tensor,
        num_classes: int,
        head_mask: Tensor,
        batch_size: int,
        active: Callable[[], bool],
    ) -> None:
        self.batch_size, self.active, self.head_mask = batch_size, active, head_mask
        self._plain = PlainSampler(training_targets, num_classes, batch_size)
        self._counts = torch.bincount(training_targets, minlength=num_classes)
        self._order = torch.argsort(training_targets, stable=True)
        self._start = torch.cumsum(self._counts, 0) - self._counts

    def steps_per_epoch(self) -> int:
        """As `ltcore.PlainSampler`."""
        return self._plain.steps_per_epoch()

    def draw(self, steps: int, distribution: Tensor | None, generator: torch.Generator) -> EpochBatches:
        """See `ltcore.Sampler.draw`; from the start on, the batches say their `Layout`.

        Raises:
            RecipeError: SAFA has started, and the distribution leaves nothing to the tail or to the head.
        """
        if not self.active():
            return self._plain.draw(steps, distribution, generator)
        weights = self._counts.double() if distribution is None else distribution.double().cpu() * (self._counts > 0)
        head, tail = self._within(weights, self.head_mask, "head"), self._within(weights, ~self.head_mask, "tail")
        layout = lay_out(self.batch_size, float(head.sum() / weights.sum()))
        # The whole epoch is drawn and then cut, so that a shorter epoch is the beginning of a longer one.
        epoch = self.steps_per_epoch()
        chance = layout.spare_head
        spare = head / head.sum() * chance + tail / tail.sum() * (1 - chance)
        blocks = [
            self._pairs(draw_classes(kind, (epoch, pairs), generator), generator)
            for kind, pairs in ((head, layout.head_pairs), (tail, layout.tail_pairs), (spare, layout.spare_pairs))
        ]
        if self.batch_size % 2:
            blocks.append(self._pairs(draw_classes(weights, (epoch, 1), generator), generator)[:, :1])
        return EpochBatches(list(torch.cat(blocks, 1)[:steps]), layout=layout)

    def _pairs(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Classes [S, P] to the pairs' images [S, 2 P], the first of all pairs and then the second."""
        counts = self._counts[classes]
        uniform = torch.rand((2, *classes.shape), generator=generator, dtype=torch.float64)
        # rand() is below 1, but the product can round up to the count.
        first = torch.minimum((uniform[0] * counts).long(), counts - 1)
        others = (counts - 1).clamp(min=1)
        step = 1 + torch.minimum((uniform[1] * others).long(), others - 1)
        ranks = torch.cat([first, (first + step) % counts], 1)
        return self._order[self._start[torch.cat([classes, classes], 1)] + ranks]

    @staticmethod
    def _within(weights: Tensor, mask: Tensor, name: str) -> Tensor:
        inside = weights * mask
        if not bool((inside > 0).any()):
            raise RecipeError(f"the class distribution of this stage never draws a {name} class, and SAFA needs both")
        return inside
