"""Batches of several images a class."""

from __future__ import annotations

import torch
from torch import Tensor

from ltcore import EpochBatches, PlainSampler, draw_classes


class MPerClassSampler:
    """A batch is groups of m images of one class each.

    Without a distribution the classes come in turn, in a new random order each time round. With one, each group's
    class is drawn from it. The images of a class come in turn in the same way, so that none comes again before all
    others of its class have. An epoch has as many batches as a plain one, all of them full. Where m does not divide
    the batch size, the last group is smaller.

    Args:
        targets: [N] int64, on the CPU.
        num_classes: C.
        batch_size: B.
        images: m, at least 1.
    """

    def __init__(self, targets: Tensor, num_classes: int, batch_size: int, images: int) -> None:
        self.batch_size, self.images = batch_size, images
        self._plain = PlainSampler(targets, num_classes, batch_size)
        self._counts = torch.bincount(targets, minlength=num_classes)
        self._order = torch.argsort(targets, stable=True)
        self._start = torch.cumsum(self._counts, 0) - self._counts

    def steps_per_epoch(self) -> int:
        """As `ltcore.PlainSampler`."""
        return self._plain.steps_per_epoch()

    def draw(self, steps: int, distribution: Tensor | None, generator: torch.Generator) -> EpochBatches:
        """See `ltcore.Sampler.draw`."""
        # The whole epoch is drawn and then cut, so that a shorter epoch is the beginning of a longer one.
        epoch, groups = self.steps_per_epoch(), -(-self.batch_size // self.images)
        if distribution is None:
            present = self._counts.nonzero()[:, 0]
            rounds = -(-epoch * groups // len(present))
            classes = present[_turns(torch.full((rounds,), len(present)), generator)][: epoch * groups]
        else:
            classes = draw_classes(distribution.cpu() * (self._counts > 0), (epoch * groups,), generator)
        batches = self._images_of(classes.repeat_interleave(self.images), generator).view(epoch, -1)
        return EpochBatches(list(batches[:steps, : self.batch_size]))

    def _images_of(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """An image of each class [M], in turn within a class: indices [M]."""
        counts, wanted = self._counts, torch.bincount(classes, minlength=len(self._counts))
        rounds = -(-wanted // counts.clamp(min=1))
        first = torch.cumsum(rounds * counts, 0) - rounds * counts
        ranks = _turns(counts.repeat_interleave(rounds), generator)
        # How often the class has come before.
        order = torch.argsort(classes, stable=True)
        before = torch.empty_like(classes)
        before[order] = torch.arange(len(classes)) - (torch.cumsum(wanted, 0) - wanted)[classes[order]]
        return self._order[self._start[classes] + ranks[first[classes] + before]]


def _turns(sizes: Tensor, generator: torch.Generator) -> Tensor:
    """Random orders one after the other, of 0 .. n - 1 for each n of `sizes` [R]: int64 [sum of sizes]."""
    turn = torch.arange(len(sizes)).repeat_interleave(sizes)
    shuffled = torch.randperm(len(turn), generator=generator)
    placed = shuffled[torch.argsort(turn[shuffled], stable=True)]
    return placed - (torch.cumsum(sizes, 0) - sizes)[turn]
