"""A run for a rehearsal: its stages train a few steps of two of their epochs, and it writes no result.

Passes over a split are made over its first batches (`ltcore.data.partial`). Everything else, the methods above all, is
what a run does.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltcore.contract.imbalance import Imbalance
from ltcore.contract.samplers import EpochBatches
from ltcore.contract.splits import ArraySplit, StreamedSplit
from ltcore.data.loader import Loader
from ltcore.data.partial import PartialLoader
from ltcore.data.prepare import PreparedData
from ltcore.data.streaming import Decoder, Request, StreamingLoader
from ltcore.discovery.binding import Hooks
from ltcore.errors import RunError
from ltcore.evaluation.metrics import evaluate_logits
from ltcore.evaluation.outputs import logits_of
from ltcore.files.run_directory import RunDirectory
from ltcore.plan.plan import Plan
from ltcore.progress.console import Reporter
from ltcore.rehearsal.memory import is_lack_of_memory, memory_used
from ltcore.rehearsal.projection import Measured, TimedBatches, projected_seconds
from ltcore.training.features import FeatureCache
from ltcore.training.run import Run
from ltcore.training.stage import StageTrainer
from ltcore.training.step import StepForward
from ltcore.training.trace import Watch

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


class RehearsedTrainer(StageTrainer):
    """Trains a few steps of the first epoch and of the last one that has as many."""

    run: Rehearsal
    timed: TimedBatches

    def train(self, restored: dict[str, Tensor] | None, plain: dict[str, Any]) -> None:
        """See `StageTrainer.train`; then a checkpoint is written once, to see its size and time."""
        super().train(restored, plain)
        began = self.run.clock()
        self.save()
        self.run.saving = self.run.clock() - began
        self.run.checkpoint_bytes = max(self.run.checkpoint_bytes, self.run.directory.last.stat().st_size)

    def _watched(self, watch: Watch) -> None:
        watch.leave()
        self.watch = None
        self.run.traces.append(watch.describe())

    def _epochs(self) -> Iterator[int]:
        run, per_epoch = self.run, self.sampler.steps_per_epoch()
        total = self.stage.iterations or (self.stage.epochs or 0) * per_epoch
        run.length = per_epoch, total
        whole, rest = divmod(total, per_epoch)
        last = whole if rest >= WARM_UP + run.steps else max(whole - 1, 0)
        for epoch in [0] if run.tracing else sorted({0, last}):
            began, left_out = run.clock(), run.left_out
            yield epoch
            spent = run.clock() - began
            run.in_epochs += spent
            run.epochs_left_out += run.left_out - left_out
            outside = spent - (self.timed.ended - self.timed.began) + run.left_out - left_out
            step = (self.timed.ended - self.timed.warm) / self.steps
            decoding = run.decode_seconds * self.rows / max(run.workers, 1) if run.workers and self.decodes else 0.0
            run.measured.append(Measured(epoch, self.rows, max(step, decoding), max(outside, 0.0), decoding > step))

    def _epoch(
        self,
        drawn: EpochBatches,
        forward: StepForward,
        source: Loader | FeatureCache,
        class_weights: Tensor | None,
        total: int,
        per_epoch: int,
    ) -> None:
        some = drawn.indices[: WARM_UP + self.run.steps]
        warm_up = min(WARM_UP, len(some) - 1)
        self.steps, self.rows = len(some) - warm_up, sum(map(len, some)) / len(some)
        found = source.loader if isinstance(source, PartialLoader) else source
        self.decodes = isinstance(found, StreamingLoader)
        self.timed = TimedBatches(found, warm_up, self.run.device, self.run.clock)
        timed: Any = self.timed
        super()._epoch(replace(drawn, indices=some), forward, timed, class_weights, total, per_epoch)
        self.run.note_memory()


class Rehearsal(Run):
    """A run that is not one: see the module.

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

    trainer = RehearsedTrainer
    reporter: _Notes

    def __init__(
        self,
        plan: Plan,
        cut: Callable[[Imbalance | None], PreparedData],
        directory: RunDirectory,
        device: torch.device,
        steps: int,
        say: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.perf_counter,
        tracing: bool = False,
    ) -> None:
        self.steps, self.say, self.clock, self._cut_data = steps, say, clock, cut
        #: Every loader that there was; a stage with data of its own has one of its own.
        self._partial: list[PartialLoader] = []
        self.workers, self.decode_seconds = 0, 0.0
        self.saving = self.in_epochs = self.epochs_left_out = 0.0
        self.checkpoint_bytes = 0
        #: Steps of an epoch and of the whole stage.
        self.length = 0, 0
        self.measured: list[Measured] = []
        self.stages: list[dict[str, Any]] = []
        self.memory: dict[str, int] = {}
        #: What was seen of the hooks of each stage, as `ltcore.training.trace.Watch.describe` gives it.
        self.traces: list[dict[str, Any]] = []
        super().__init__(plan, cut(None), directory, device, _Notes())
        self.tracing = tracing

    def _cut(self, imbalance: Imbalance | None) -> PreparedData:
        return self._cut_data(imbalance)

    def _loader(self, split: ArraySplit | StreamedSplit) -> Loader:
        loader = super()._loader(split)
        self.workers = loader.workers if isinstance(loader, StreamingLoader) else 0
        if isinstance(loader, StreamingLoader) and not isinstance(split, ArraySplit) and not self.decode_seconds:
            decoder = Decoder(split, self.data.transform)
            for count in (1, min(_DECODED, len(split))):  # the first call imports what decodes
                began = self.clock()
                decoder.__getitems__(Request(np.arange(count), np.zeros(count, dtype=np.int64)))
                self.decode_seconds = (self.clock() - began) / count
        self._partial.append(PartialLoader(loader, self.workers, self.clock))
        return self._partial[-1]

    @property
    def left_out(self) -> float:
        """Seconds of passes over splits that were not spent."""
        return sum(loader.left_out for loader in self._partial)

    @property
    def reduced(self) -> bool:
        """Whether batches of a pass were too slow to be computed whole."""
        return any(loader.reduced for loader in self._partial)

    def note_memory(self) -> None:
        """Keep the largest figures seen."""
        for name, size in memory_used(self.device).items():
            self.memory[name] = max(size, self.memory.get(name, 0))

    def _train_stage(self, index: int, hooks: Hooks, tensors: dict[str, Tensor] | None, plain: dict[str, Any]) -> None:
        stage, entries = self.plan.stages[index].stage, self.plan.stages[index].entries
        self.say(f"rehearsing stage {index + 1}/{len(self.plan.stages)} {stage.name}")
        self.measured, self.in_epochs, self.epochs_left_out = [], 0.0, 0.0
        began, left_out, passes = self.clock(), self.left_out, sum(loader.passes for loader in self._partial)
        projected = sum(loader.projected for loader in self._partial)
        try:
            super()._train_stage(index, hooks, tensors, plain)
        except (MemoryError, RuntimeError) as error:
            _refuse_lack_of_memory(error, f"stage '{stage.name}'")
            raise
        around = self.clock() - began - self.in_epochs - self.saving + self.left_out - left_out - self.epochs_left_out
        early, late = self.measured[0], self.measured[-1]
        per_epoch, steps = self.length
        epochs = steps / per_epoch
        starts = [start for entry in entries if (start := _start_epoch(entry.method.options)) and start < epochs]
        change = min(starts) if starts else epochs / 2
        seconds = projected_seconds(steps, per_epoch, early, late, change, max(around, 0.0))
        every = self.recipe.checkpoint_seconds
        saves = steps if not every else min(steps, int(seconds / every))
        self.stages.append(
            {
                "name": stage.name,
                "epochs": epochs,
                "steps": steps,
                "batch_rows": early.rows,
                "early": early.figures,
                "late": late.figures,
                "early_epochs": min(change, epochs),
                "change_stated": bool(starts),
                "passes": sum(loader.passes for loader in self._partial) - passes,
                "passes_seconds": sum(loader.projected for loader in self._partial) - projected,
                "around_seconds": max(around, 0.0),
                "checkpoints": saves,
                "checkpoint_seconds": self.saving,
                "seconds": seconds + saves * self.saving,
            }
        )

    def finish(self) -> float:
        """Calibrate and evaluate as at a run's end, and write nothing; returns the seconds that it would take."""
        began, left_out = self.clock(), self.left_out
        try:
            calibrated = self._calibrated()
            pooled, logits, targets = self._outputs("test")
            for found in (logits, logits_of(calibrated, pooled, self.recipe.eval_batch_size)):
                evaluate_logits(found, targets, self.data.class_counts)
        except (MemoryError, RuntimeError) as error:
            _refuse_lack_of_memory(error, "calibration")
            raise
        self.note_memory()
        return max(self.clock() - began + self.left_out - left_out, 0.0)


def _start_epoch(options: Any) -> int:
    """The epoch at which a method begins, by the usual name of that option; 0 where it has none."""
    start = getattr(options, "start_epoch", 0)
    return start if isinstance(start, int) else 0


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
