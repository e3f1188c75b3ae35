"""A run: the order of its stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ltcore import ranks
from ltcore.files import checkpoint
from ltcore.files.run_directory import RunDirectory
from ltcore.plan.untrained import untrained
from ltcore.training import stopping
from ltcore.training.acceleration import chosen
from ltcore.training.arithmetic import arithmetic
from ltcore.training.assembly import Assembly
from ltcore.training.cache_files import CacheFiles
from ltcore.training.evaluation import Evaluation
from ltcore.training.groups import check_groups
from ltcore.training.loop import Extent, Observer, Whole
from ltcore.training.observers import Checkpointer, FiniteGuard, Progress
from ltcore.training.position import Position, Restored, find
from ltcore.training.result import result_rows, unsure_lines, write_result
from ltcore.training.stage import set_up
from ltcore.training.trace import STEPS, HookTrace, asked, render
from ltcore.training.unchanged import environment_of
from ltcore.training.validation import Validation

if TYPE_CHECKING:
    from ltcore.contract.model import Model
    from ltcore.contract.recipe import Recipe
    from ltcore.contract.result import EnvironmentRecord, Result
    from ltcore.discovery.binding import Hooks
    from ltcore.progress.console import Reporter


class TakenOver(Protocol):
    """Stages that another run has trained (`ltcore.training.reuse.Reuse`)."""

    def into(self, model: Model, recipe: Recipe, directory: RunDirectory) -> None:
        """Write their files into a run's directory, as if it had trained them and then been killed."""


class Run:
    """The stages of a recipe, trained one after the other.

    Args:
        assembly: the run's parts.
        directory: the run's directory, new or of a run to go on with.
        reporter: tells the user how it goes.
        reused: what is taken over from another run.
        observers: look on, beside those that every run has.
        extent: how much of each stage is trained.
        traced: takes what was seen of a stage's hooks; by default it is written and shown where steps were traced.
        traced_steps: how many steps of each stage are traced; by default what the environment asks for.
        features: a folder in which other runs look for features of frozen stages, too.
    """

    def __init__(
        self,
        assembly: Assembly,
        directory: RunDirectory,
        reporter: Reporter,
        reused: TakenOver | None = None,
        observers: Sequence[Observer] = (),
        extent: Extent | None = None,
        traced: Callable[[HookTrace], None] | None = None,
        traced_steps: int | None = None,
        features: Path | None = None,
    ) -> None:
        self.assembly, self.directory, self.reporter, self._reused = assembly, directory, reporter, reused
        self._others, self._extent = observers, extent or Whole()
        self._traced = traced
        self._files = CacheFiles(directory.features, features)
        self.plan, self.recipe = assembly.plan, assembly.recipe
        self.evaluation = Evaluation(assembly)
        self.position = Position()
        self._traced_steps = (STEPS if asked() else 0) if traced_steps is None else traced_steps

    def execute(self, about: dict[str, Any] | None = None, surroundings: EnvironmentRecord | None = None) -> Result:
        """Train the stages that are not done yet, calibrate, and write the result.

        Args:
            about: for the result, how the recipe's values were chosen, what was taken over, and what has changed.
            surroundings: the environment of this process, where it is known already.
        """
        surroundings = surroundings or environment_of(self.plan, self.assembly.device)
        with arithmetic(tf32=False), self.reporter:
            self.reporter.run_started(self.recipe.name, self.directory.path, self._summary())
            self.train()
            result = write_result(self.assembly, self.directory, self.position, surroundings, about or {})
            for line in unsure_lines(result):
                self.reporter.note(line)
            self.reporter.finished(result_rows(result), self.directory.path)
        return result

    def train(self) -> None:
        """Train the stages that are not done yet; the others are read from their files."""
        try:
            with arithmetic(tf32=False):
                self._train()
        finally:
            self.assembly.data.end_workers()

    def _train(self) -> None:
        self.assembly.start()
        check_groups(self.plan, self.assembly.model)
        for text in untrained(self.plan.loaded, [(plan.stage, plan.entries) for plan in self.plan.stages]):
            if text not in self.plan.warnings:  # of modules that were made by now
                self._warn(text)
        if self._reused and not self.directory.checkpoints():
            self._reused.into(self.assembly.model, self.recipe, self.directory)
        restored = self._restore()
        for index, stage in enumerate(self.plan.stages):
            hooks = self.assembly.hooks(index)
            quick = chosen(self.plan, index, self.assembly.device).chosen != "off"
            with arithmetic(stage.stage.precision == "tf32", same_shapes=quick):
                if index < self.position.stage:
                    self._reopen_stage(index, hooks)
                else:
                    self._train_stage(index, hooks, restored)
                    restored = None
            self.assembly.provider.freeze(stage.stage.name)
        self._files.clear()  # of a run that was killed between a stage and the next

    def _restore(self) -> Restored | None:
        """Stand where the run stood; returns the checkpoint, if it is one inside a stage."""
        with ranks.first():  # which may put a damaged one aside
            restored = find(self.directory, self.recipe.stages, self.assembly.device, self.reporter.note)
        if restored is None:
            self.directory.cut_metrics(0)
            return None
        self.position = position = restored.position
        if not self.directory.cut_metrics(position.metrics_size):
            self._warn(
                f"{self.directory.path / 'metrics.jsonl'} has lost lines of earlier epochs; no figure depends on it"
            )
        self.reporter.note(
            f"going on from stage {position.stage + 1}, epoch {position.epoch + 1}, step {position.step + 1}"
            if position.stage < len(self.plan.stages)
            else "every stage had ended; only the results are missing"
        )
        return restored if restored.tensors else None

    def _reopen_stage(self, index: int, hooks: Hooks) -> None:
        """Read a stage that has ended: only its shape, and its model for later stages, are needed."""
        name, assembly = self.plan.stages[index].stage.name, self.assembly
        assembly.enter(name, index)
        assembly.prepare(index, hooks)
        path = self.directory.stage_file(index, name)
        checkpoint.restore_model(assembly.model, checkpoint.load(path, assembly.device)[0], path)
        results = self.position.results[index]
        if assembly.data.whole.test is not None and "test" not in results:
            # Trained by a selection, which has no test data.
            self.position.results[index] = {**results, **self.evaluation.figures()}

    def _train_stage(self, index: int, hooks: Hooks, restored: Restored | None) -> None:
        """Train a stage to its end, evaluate it, and write its file."""
        stage, position, assembly = self.plan.stages[index].stage, self.position, self.assembly
        for observer in self._others:
            observer.stage_entered(index)
        assembly.enter(stage.name, index)
        trace = HookTrace(
            stage, hooks, assembly.state, self._warn, self._traced or self._show_trace, self._traced_steps
        )
        assembly.prepare(index, hooks)
        if restored is not None:
            checkpoint.restore_model(assembly.model, restored.tensors, self.directory.last)
        observers = self._observers(trace)
        loop = set_up(
            assembly,
            index,
            hooks,
            position,
            restored,
            observers,
            self._extent,
            files=self._files,
            warn=self._warn,
        )
        with stopping.steps():
            loop.train()
        figures = self.evaluation.figures()
        speed = round(position.images / max(position.seconds, 1e-9), 1)
        seconds = round(position.seconds, 3)
        found: Any = {"name": stage.name, "seconds": seconds, "images_per_second": speed, **figures}
        if position.acceleration is not None:
            found["acceleration"] = position.acceleration
        if position.validation is not None:
            found["validations"] = position.validation
        position.results.append(found)
        self.reporter.stage_ended(stage.name, figures.get("test", figures.get("validation")), position.seconds)
        checkpoint.save(self.directory.stage_file(index, stage.name), checkpoint.model_tensors(assembly.model), {})
        position.end_stage(index)
        position.write_boundary(self.directory)
        self._files.clear()
        for observer in self._others:
            observer.stage_left(index)

    def _observers(self, trace: HookTrace) -> list[Observer]:
        """Those of every run in their order: what is not finite is found before anything is shown or kept."""
        guard = FiniteGuard(self.plan, self.directory)
        diagnose = self.evaluation.diagnose if self.recipe.diagnostics == "epoch" else None
        validation = Validation(self.evaluation, self.reporter.note)
        progress = Progress(self.reporter, self.directory, len(self.plan.stages), diagnose, lambda: validation.figures)
        checkpointer = Checkpointer(self.directory, self.recipe.checkpoint_seconds, guard)
        return [guard, trace, validation, progress, checkpointer, *self._others]

    def _warn(self, text: str) -> None:
        self.reporter.note(f"warning: {text}")

    def _show_trace(self, trace: HookTrace) -> None:
        if self._traced_steps:
            trace.write(self.directory.path / "trace.jsonl")
            for line in render(trace.describe(), self.assembly.device.type):
                self.reporter.note(line)

    def _summary(self) -> list[str]:
        data, backbone = self.assembly.data.whole, self.assembly.model.backbone
        counts = data.class_counts
        millions = sum(p.numel() for p in backbone.parameters()) / 1e6
        held = f", {len(data.val)} held out" if data.val is not None else ""
        return [
            f"data      {self.recipe.data.use}: {len(counts)} classes of {int(counts.max())} to {int(counts.min())} "
            f"images, {int(counts.sum())} to train on{held}, {len(data.test or ())} to test on",
            *(f"note      {note}" for note in data.notes),
            *(f"warning   {text}" for text in self.plan.warnings),
            f"backbone  {self.recipe.backbone.use}, {millions:.2f} million parameters, on {self.assembly.device}",
        ]
