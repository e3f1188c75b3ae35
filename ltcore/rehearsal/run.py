"""A rehearsed run: its stages train a few steps of two of their epochs, and it writes no result.

Passes over a split are made over its first batches (`ltcore.data.partial`). Everything else, the methods above all, is
what a run does.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltcore.contract.splits import ArraySplit, StreamedSplit
from ltcore.data.partial import PartialLoader
from ltcore.data.prepare import PreparedData
from ltcore.data.streaming import Decoder, Request, StreamingLoader, build_loader, worker_count
from ltcore.errors import RunError
from ltcore.files.run_directory import RunDirectory
from ltcore.plan.plan import Plan
from ltcore.progress.console import Reporter
from ltcore.rehearsal.memory import is_lack_of_memory, memory_used
from ltcore.rehearsal.projection import Measured, projected_seconds
from ltcore.training.assembly import Assembly
from ltcore.training.data import Cut, RunData
from ltcore.training.loop import Loop, Observer
from ltcore.training.observers import Checkpointer, FiniteGuard
from ltcore.training.run import Run
from ltcore.training.trace import STEPS, HookTrace

WARM_UP = 2
_DECODED = 8  # images that are decoded to see how long one takes


class _Notes(Reporter):
    """Shows nothing, and keeps what the user should read."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep a line."""
        self.notes.append(text)


class PartialLoaders:
    """The loaders of a rehearsal, one for each split and for each stage with data of its own.

    Args:
        plan: the plan.
        device: where batches are wanted.
        clock: seconds.
    """

    def __init__(self, plan: Plan, device: torch.device, clock: Callable[[], float]) -> None:
        self._asked, self._device, self._clock = plan.loaded.recipe.data.workers, device, clock
        self.all: list[PartialLoader] = []
        self.workers, self.decode_seconds = 0, 0.0

    def make(self, data: PreparedData, split: ArraySplit | StreamedSplit) -> PartialLoader:
        """The loader of a split of `data`; where images are decoded, it is timed how long one takes."""
        workers = worker_count(self._asked)
        loader = build_loader(split, data.transform, data.mean, data.std, workers, self._device)
        self.workers = loader.workers if isinstance(loader, StreamingLoader) else 0
        if isinstance(loader, StreamingLoader) and not isinstance(split, ArraySplit) and not self.decode_seconds:
            decoder = Decoder(split, data.transform)
            for count in (1, min(_DECODED, len(split))):  # the first call imports what decodes
                began = self._clock()
                decoder.__getitems__(Request(np.arange(count), np.zeros(count, dtype=np.int64)))
                self.decode_seconds = (self._clock() - began) / count
        self.all.append(PartialLoader(loader, self.workers, self._clock))
        return self.all[-1]

    def seconds_to_decode(self, source: object, rows: float) -> float:
        """What decoding `rows` images takes beside the computation; 0 where `source` decodes in between, or nothing.

        What methods do to each image counts as decoding; it is measured with the functions of the epoch.
        """
        if not isinstance(source, PartialLoader) or not isinstance(source.loader, StreamingLoader):
            return 0.0
        if not self.workers:
            return 0.0
        return (self.decode_seconds + source.change_seconds) * rows / self.workers

    @property
    def left_out(self) -> float:
        """Seconds of passes over splits that were not spent."""
        return sum(loader.left_out for loader in self.all)

    @property
    def projected(self) -> float:
        """Seconds that the passes would have taken."""
        return sum(loader.projected for loader in self.all)

    @property
    def passes(self) -> int:
        """How many passes there were."""
        return sum(loader.passes for loader in self.all)

    @property
    def reduced(self) -> bool:
        """Whether batches of a pass were too slow to be computed whole."""
        return any(loader.reduced for loader in self.all)


class Stopwatch(Observer):
    """Chooses the steps of a rehearsal, times them, and projects what each stage takes.

    Args:
        plan: the plan.
        loaders: the rehearsal's loaders.
        directory: the rehearsal's, where a checkpoint is written to see its size and time.
        device: where it trains.
        steps: measured steps of each epoch that is rehearsed.
        say: tells the user which stage is rehearsed.
        clock: seconds.
        tracing: train the first epoch only.
    """

    def __init__(
        self,
        plan: Plan,
        loaders: PartialLoaders,
        directory: RunDirectory,
        device: torch.device,
        steps: int,
        say: Callable[[str], None],
        clock: Callable[[], float],
        tracing: bool,
    ) -> None:
        self._plan, self._loaders, self._directory, self._device = plan, loaders, directory, device
        self._steps, self._say, self._clock, self._tracing = steps, say, clock, tracing
        self.stages: list[dict[str, Any]] = []
        self.memory: dict[str, int] = {}
        self.checkpoint_bytes = 0
        self.stage = "before the first stage"

    # -- which steps -----------------------------------------------------------------------------------------------

    def epochs(self, loop: Loop) -> Iterator[int]:
        """The first epoch, and the last that has as many steps; each is measured, with what is around its steps."""
        self._length = loop.steps_per_epoch, loop.total
        whole, rest = divmod(loop.total, loop.steps_per_epoch)
        last = whole if rest >= WARM_UP + self._steps else max(whole - 1, 0)
        for epoch in [0] if self._tracing else sorted({0, last}):
            began, left_out = self._clock(), self._loaders.left_out
            yield epoch
            spent, left_out = self._clock() - began, self._loaders.left_out - left_out
            self._in_epochs += spent
            self._epochs_left_out += left_out
            outside = spent - (self._ended - self._began) + left_out
            step = (self._ended - self._warm) / self._measured_steps
            decoding = self._loaders.seconds_to_decode(loop.source, self._rows)
            self._measured.append(Measured(epoch, self._rows, max(step, decoding), max(outside, 0.0), decoding > step))

    def steps(self, indices: list[Tensor]) -> list[Tensor]:
        """The first few, of which some warm up."""
        some = indices[: WARM_UP + self._steps]
        self._warm_up = min(WARM_UP, len(some) - 1)
        self._measured_steps, self._rows = len(some) - self._warm_up, sum(map(len, some)) / len(some)
        return some

    # -- how long they take ----------------------------------------------------------------------------------------

    def stage_entered(self, index: int) -> None:
        """Begin to measure a stage."""
        stage = self._plan.stages[index].stage
        self.stage = f"stage '{stage.name}'"
        self._say(f"rehearsing stage {index + 1}/{len(self._plan.stages)} {stage.name}")
        self._measured: list[Measured] = []
        self._in_epochs = self._epochs_left_out = self._saving = 0.0
        loaders = self._loaders
        self._before = self._clock(), loaders.left_out, loaders.passes, loaders.projected

    def epoch_started(self, loop: Loop) -> None:
        """The steps come next."""
        self._began = self._warm = self._now()

    def step_ended(self, loop: Loop) -> None:
        """A step is done."""
        done = loop.position.step
        if done == self._warm_up:
            self._warm = self._now()
        if done == len(loop.batches):
            self._ended = self._now()

    def epoch_ended(self, loop: Loop) -> None:
        """Look at the memory."""
        self.note_memory()

    def stage_ended(self, loop: Loop) -> None:
        """Write a checkpoint once, to see its size and time."""
        began = self._clock()
        Checkpointer(self._directory, 0, FiniteGuard(self._plan, self._directory)).save(loop)
        self._saving = self._clock() - began
        self.checkpoint_bytes = max(self.checkpoint_bytes, self._directory.last.stat().st_size)

    def stage_left(self, index: int) -> None:
        """Project what the whole stage takes."""
        plan, loaders = self._plan.stages[index], self._loaders
        before, left_out, passes, projected = self._before
        around = self._clock() - before - self._in_epochs - self._saving
        around = max(around + loaders.left_out - left_out - self._epochs_left_out, 0.0)
        early, late = self._measured[0], self._measured[-1]
        per_epoch, steps = self._length
        epochs = steps / per_epoch
        starts = [start for entry in plan.entries if 0 < (start := entry.method.acts_from) < epochs]
        change = min(starts) if starts else epochs / 2
        seconds = projected_seconds(steps, per_epoch, early, late, change, around)
        every = self._plan.loaded.recipe.checkpoint_seconds
        saves = steps if not every else min(steps, int(seconds / every))
        self.stages.append(
            {
                "name": plan.stage.name,
                "epochs": epochs,
                "steps": steps,
                "batch_rows": early.rows,
                "early": early.figures,
                "late": late.figures,
                "early_epochs": min(change, epochs),
                "change_stated": bool(starts),
                "passes": loaders.passes - passes,
                "passes_seconds": loaders.projected - projected,
                "around_seconds": around,
                "checkpoints": saves,
                "checkpoint_seconds": self._saving,
                "seconds": seconds + saves * self._saving,
            }
        )

    def note_memory(self) -> None:
        """Keep the largest figures seen."""
        for name, size in memory_used(self._device).items():
            self.memory[name] = max(size, self.memory.get(name, 0))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()


class Rehearsal:
    """A run that trains a few steps: see the module.

    Args:
        plan: the plan.
        cut: gives images that stand for the recipe's, or they themselves, with an imbalance in place of the recipe's.
        directory: a temporary one.
        device: where to train.
        steps: measured steps of each epoch that is rehearsed.
        say: tells the user which stage is rehearsed.
        clock: seconds.
        tracing: trace the first steps of each stage, and train no others.
    """

    def __init__(
        self,
        plan: Plan,
        cut: Cut,
        directory: RunDirectory,
        device: torch.device,
        steps: int,
        say: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.perf_counter,
        tracing: bool = False,
    ) -> None:
        self.plan, self.device, self._clock = plan, device, clock
        self.notes = _Notes()
        self.loaders = PartialLoaders(plan, device, clock)
        whole = cut(None)
        data = RunData(plan, whole, device, cut, lambda split: self.loaders.make(whole, split))
        self.assembly = Assembly(plan, data, device)
        #: What was seen of the hooks of each stage, as `ltcore.training.trace.HookTrace.describe` gives it.
        self.traces: list[dict[str, Any]] = []
        self.stopwatch = Stopwatch(plan, self.loaders, directory, device, steps, say, clock, tracing)
        self._run = Run(
            self.assembly,
            directory,
            self.notes,
            observers=[self.stopwatch],
            extent=self.stopwatch,
            traced=self._keep_trace,
            traced_steps=STEPS if tracing else 0,
        )

    def _keep_trace(self, trace: HookTrace) -> None:
        self.traces.append(trace.describe())

    def train(self) -> None:
        """Go through the stages.

        Raises:
            RunError: memory has run out; the message says where.
        """
        try:
            self._run.train()
        except (MemoryError, RuntimeError) as error:
            _refuse_lack_of_memory(error, self.stopwatch.stage)
            raise

    def finish(self) -> float:
        """Calibrate and evaluate as at a run's end, and write nothing; returns the seconds that it would take."""
        began, left_out = self._clock(), self.loaders.left_out
        evaluation = self._run.evaluation
        try:
            calibrated = self.assembly.calibrated()
            pooled, logits, targets = evaluation.outputs("test")
            for found in (logits, evaluation.logits(calibrated, pooled)):
                evaluation.figures_of(found, targets)
        except (MemoryError, RuntimeError) as error:
            _refuse_lack_of_memory(error, "calibration")
            raise
        self.stopwatch.note_memory()
        return max(self._clock() - began + self.loaders.left_out - left_out, 0.0)


def _refuse_lack_of_memory(error: Exception, where: str) -> None:
    """Say where memory ran out and what to do, if that is what happened.

    Raises:
        RunError: it is.
    """
    if is_lack_of_memory(error):
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"{where}: memory has run out ({said}); lower the stage's batch_size or eval_batch_size"
        ) from error
