"""A rehearsal's loader: a few batches stand for a whole split, and the time that this saves is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ltcore.data.image_functions import ImageChanges, ImageFunctions
from ltcore.data.loader import Loader
from ltcore.errors import RunError

#: Images of the first two batches, before a whole one; the first of all warms up.
_FEW = (4, 16)
#: Of images that a method asks for, at most so many are prepared; and so many are to see how long its function takes.
_PICKED, _TIMED = 256, 8
#: A batch that would take longer is not computed: a pass is then timed, and its memory seen, on fewer images.
_LONGEST_BATCH = 10.0


class PartialLoader:
    """Gives the first batches of every pass over a split, and says how long the others would have taken.

    Args:
        loader: the split's loader.
        workers: processes that decode beside the computation; 0 where images are in memory or decoded in between.
        clock: seconds.
    """

    def __init__(self, loader: Loader, workers: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.loader, self.workers, self._clock = loader, workers, clock
        self.device, self.generator_device = loader.device, loader.generator_device
        #: Passes so far, their projected seconds, and how many of those were not spent.
        self.passes, self.projected, self.left_out = 0, 0.0, 0.0
        #: Whether some batch was too slow to be computed whole.
        self.reduced = False
        #: What methods' functions take for an image of the epoch, where workers prepare it.
        self.change_seconds = 0.0
        #: Of each kind of images that a method has asked for in this epoch, some, and what one has taken.
        self._picked: dict[tuple[bool, bytes], tuple[Tensor, float]] = {}

    def __len__(self) -> int:
        """Number of images."""
        return len(self.loader)

    def eval_batch(self, start: int, stop: int, crops: bool = False) -> Tensor:
        """See `ltcore.data.loader.Loader.eval_batch`."""
        return self.loader.eval_batch(start, stop, crops)

    def end_workers(self) -> None:
        """See `ltcore.data.loader.Loader.end_workers`."""
        self.loader.end_workers()

    def eval_batches(self, batch_size: int, crops: bool = False) -> Iterator[Tensor]:
        """The first images, some of them several times; see `completed`."""
        return self._first(batch_size, lambda rows: self.loader.eval_batch(0, rows, crops))

    def train_batches(
        self,
        indices: Iterable[Tensor],
        generators: Iterable[torch.Generator],
        changes: ImageChanges | None = None,
    ) -> Iterator[Tensor]:
        """See `ltcore.data.loader.Loader.train_batches`."""
        self.change_seconds = 0.0
        self._picked.clear()
        if changes is not None and self.workers:
            indices = list(indices)
            self.change_seconds = self._seconds_to_change(indices[0][:_TIMED], changes.functions)
        return self.loader.train_batches(indices, generators, changes)

    def _seconds_to_change(self, indices: Tensor, functions: ImageFunctions) -> float:
        spent = []
        for asked in (None, functions):
            began = self._clock()
            self.loader.pick(indices, torch.Generator(self.generator_device).manual_seed(0), asked, augmented=True)
            spent.append(self._clock() - began)
        return max(spent[1] - spent[0], 0.0) / max(len(indices), 1)

    def pick(
        self,
        indices: Tensor,
        generator: torch.Generator | None = None,
        functions: ImageFunctions | None = None,
        augmented: bool = False,
    ) -> Tensor:
        """The images, where they are few; else some, several times, and the time that this saves is kept.

        In an epoch the same kind of images is prepared once, however often it is asked for.
        """
        if len(indices) <= max(_FEW):
            return self.loader.pick(indices, generator, functions, augmented)
        kind, spent = (augmented, b"" if functions is None else functions.pickled), 0.0
        if kind not in self._picked:
            began = self._clock()
            some = self.loader.pick(indices[:_PICKED], generator, functions, augmented)
            self._wait()
            spent = self._clock() - began
            self._picked[kind] = some, spent / len(some)
        some, an_image = self._picked[kind]
        self.projected += an_image * len(indices)
        self.left_out += an_image * len(indices) - spent
        return some[torch.arange(len(indices), device=some.device) % len(some)]

    def augmented_pass(self, indices: Iterable[Tensor], generators: Iterable[torch.Generator]) -> Iterator[Tensor]:
        """The first training images, augmented, some of them several times; see `completed`."""
        index, generator = next(iter(indices)), next(iter(generators))
        return self._first(len(index), lambda rows: next(iter(self.loader.train_batches([index[:rows]], [generator]))))

    def _first(self, batch_size: int, images: Callable[[int], Tensor]) -> Iterator[Tensor]:
        size = min(batch_size, len(self))
        sizes = [*(min(size, few) for few in _FEW), *([size] if size > max(_FEW) else [])]
        started, an_image = self._clock(), 0.0
        for rows in sizes:
            if an_image * rows > _LONGEST_BATCH:
                self.reduced = True
                break
            began = self._clock()
            batch = images(rows)
            arrived = self._clock()
            yield batch
            self._wait()
            reading, computing = arrived - began, self._clock() - arrived
            seconds = max(reading / self.workers, computing) if self.workers else reading + computing
            an_image = seconds / rows
        self.passes += 1
        self.projected += an_image * len(self)
        self.left_out += an_image * len(self) - (self._clock() - started)

    def completed(self, rows: Tensor) -> Tensor:
        """Rows for the whole split out of those of the batches given: [M, ...] to [N, ...], float.

        They are repeated, each time scaled by factors near one, so that no two are equal. A covariance of
        them has the rank that it would have.

        Raises:
            RunError: they would not fit into memory.
        """
        total, row_bytes = len(self), rows[0].numel() * rows.element_size()
        needed, free = 2 * total * row_bytes, free_memory()  # the parts, and what they are joined into
        if rows.device.type == "cpu" and needed > free:
            raise RunError(
                f"the features of {total} images, {list(rows.shape[1:])} each, take {total * row_bytes / 1e9:.1f} GB "
                f"and while they are joined twice that, but {free / 1e9:.1f} GB of memory are free"
            )
        generator = torch.Generator(device=rows.device).manual_seed(0)
        parts = []
        for start in range(0, total, len(rows)):
            part = rows[: total - start]
            factor = torch.rand(part.shape, generator=generator, device=rows.device, dtype=torch.float32)
            parts.append(part * (0.9 + 0.2 * factor).to(rows.dtype))
        return torch.cat(parts)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def augmented_pass(
    loader: Loader, indices: Iterable[Tensor], generators: Iterable[torch.Generator]
) -> Iterator[Tensor]:
    """A pass over the training images, augmented: all there are, or in a rehearsal the first."""
    passes = loader.augmented_pass if isinstance(loader, PartialLoader) else loader.train_batches
    return passes(indices, generators)


def completed(rows: Tensor, loader: Loader) -> Tensor:
    """The rows of a pass over a loader: all there are, or in a rehearsal as many as there would be."""
    return loader.completed(rows) if isinstance(loader, PartialLoader) else rows


def free_memory() -> float:
    """Bytes that can be had on the CPU; infinite where the system does not say."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return float("inf")
    lines = dict(line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return float(lines["MemAvailable"].split()[0]) * 1024
