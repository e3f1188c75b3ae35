"""Training for a check: the very run that ``ltcore run`` makes, on the checks' data, watched, without its result."""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ltcore.errors import LtcoreError, RunError
from ltcore.evaluation.outputs import logits_of
from ltcore.files.run_directory import RunDirectory
from ltcore.files.writing import unflushed
from ltcore.progress.console import Reporter
from ltcore.testing.recipes import plan_of
from ltcore.testing.state import plain_state, same
from ltcore.testing.watch import Watch
from ltcore.training.assembly import Assembly
from ltcore.training.data import RunData, read_data
from ltcore.training.loop import Loop, Observer
from ltcore.training.run import Run

if TYPE_CHECKING:
    from ltcore.plan.plan import Plan


#: The entry of `Trained.tensors` with the logits of the training images after calibration.
CALIBRATED = "calibrated logits"


@dataclass
class Saved:
    """A checkpoint inside a stage.

    Attributes:
        at: stage, epoch and the number of its steps that were done.
        content: the file.
        metrics: ``metrics.jsonl`` as it was.
        plain: what the methods held outside of their state, by ``method.attribute``.
    """

    at: tuple[str, int, int]
    content: bytes
    metrics: bytes
    plain: dict[str, str]


@dataclass(frozen=True)
class Step:
    """A step of a training.

    Attributes:
        at: stage, epoch and step, from 0.
        losses: its terms.
        images: how many images the stage has seen behind it.
    """

    at: tuple[str, int, int]
    losses: dict[str, float]
    images: int


@dataclass
class Trained:
    """What must be equal wherever a training is the same.

    Attributes:
        losses: stage, epoch and mean loss.
        tensors: the model with the methods' modules and buffers, and the logits after calibration.
        saved: checkpoints inside stages, where they were asked for.
        steps: every step. Of these and `tested` the comparison to the bit says nothing that it does not say anyway.
        tested: how many test images there are logits of, and the accuracy on them; None where there are none.
    """

    losses: list[tuple[str, int, float]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    saved: list[Saved] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    tested: tuple[int, float] | None = None

    def difference(self, other: Trained) -> str | None:
        """What differs first; None where all is the same, bit for bit."""
        for mine, theirs in zip(self.losses, other.losses, strict=False):
            if repr(mine) != repr(theirs):
                stage, epoch, loss = mine
                return f"the mean loss of stage '{stage}', epoch {epoch + 1}: {loss!r} and {theirs[2]!r}"
        if len(self.losses) != len(other.losses):
            return f"the number of epochs: {len(self.losses)} and {len(other.losses)}"
        names = sorted(set(self.tensors) ^ set(other.tensors))
        if names:
            return f"what there is: {names[0]} is there only once"
        different = [name for name, tensor in self.tensors.items() if not same(tensor, other.tensors[name])]
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        return f"{different[0]}{more}" if different else None


class _Trial(Observer):
    """Shows the watch each step, and keeps checkpoints."""

    def __init__(self, watch: Watch, plan: Plan, directory: RunDirectory) -> None:
        self._watch, self._plan, self._directory = watch, plan, directory
        self.saved: list[Saved] = []
        self.steps: list[Step] = []
        self._losses: dict[str, float] = {}

    def _held(self) -> dict[str, str]:
        """What the methods hold outside of their state, by ``method.attribute``."""
        entries = self._plan.entries.items()
        return {f"{key}.{path}": text for key, e in entries for path, text in plain_state(e.method).items()}

    def stage_started(self, loop: Loop) -> None:
        watch = self._watch

        def graded(*_: Any) -> None:
            watch.look_at_gradients(loop.model, loop.trained)
            for inspector in watch.inspectors:
                inspector.graded(loop, loop.model, loop.trained)

        loop.optimizer.register_step_pre_hook(graded)
        loop.forward = watch.step(loop.forward, loop.model, loop.trained)

    def epoch_started(self, loop: Loop) -> None:
        if not self._watch.held:
            self._watch.held = self._held()
        for inspector in self._watch.inspectors:
            inspector.epoch_started(loop)

    def losses_computed(self, loop: Loop, losses: dict[str, Tensor]) -> None:
        self._losses = {name: value.item() for name, value in losses.items()}

    def step_ended(self, loop: Loop) -> None:
        position = loop.position
        self.steps.append(Step((loop.stage.name, position.epoch, position.step - 1), self._losses, position.images))
        for inspector in self._watch.inspectors:
            inspector.step_ended(loop)

    def epoch_ended(self, loop: Loop) -> None:
        for inspector in self._watch.inspectors:
            inspector.epoch_ended(loop)

    def checkpoint_written(self, loop: Loop) -> None:
        at = (loop.stage.name, loop.position.epoch, loop.position.step)
        content, metrics = self._directory.last.read_bytes(), metrics_of(self._directory).read_bytes()
        self.saved.append(Saved(at, content, metrics, self._held()))


def metrics_of(directory: RunDirectory) -> Path:
    """The file with a line per epoch."""
    return directory.path / "metrics.jsonl"


class WatchedRun:
    """A run for a check.

    Args:
        plan: the plan.
        watch: looks at what the method does.
        folder: where the run's files are.
        observers: look on, too.
    """

    def __init__(self, plan: Plan, watch: Watch, folder: Path, observers: Sequence[Observer] = ()) -> None:
        (folder / "checkpoints").mkdir(exist_ok=True)
        loaded, device = plan.loaded, torch.device(plan.loaded.recipe.device)
        plan, self._watch = watch.wrapped(plan), watch
        #: Is given the run's parts and its calibrated classifier at the end.
        self.reopening: Callable[[Assembly, nn.Module], None] | None = None
        data = RunData(plan, read_data(loaded, plan.answers["data"]), device)
        self.assembly, self.directory = Assembly(plan, data, device), RunDirectory(folder)
        watch.attach(self.assembly.state)
        self._trial = _Trial(watch, plan, self.directory)
        self._run = Run(self.assembly, self.directory, Reporter.silent(), observers=[self._trial, *observers])
        metrics_of(self.directory).touch()

    def outcome(self) -> Trained:
        """Train and calibrate; what must be the same in another such run."""
        self._run.train()
        assembly, trained = self.assembly, Trained(saved=self._trial.saved)
        for inspector in self._watch.inspectors:
            inspector.ended(assembly.model)
        classifier = assembly.calibrated()
        if self.reopening is not None:
            self.reopening(assembly, classifier)
        lines = metrics_of(self.directory).read_text(encoding="utf-8").splitlines()
        trained.steps, trained.tested = self._trial.steps, self._tested()
        trained.losses = [(line["stage"], line["epoch"], line["loss"]) for line in map(json.loads, lines)]
        trained.tensors = {name: tensor.detach().clone() for name, tensor in assembly.model.state_dict().items()}
        pooled = assembly.provider.features("train", "pooled")
        trained.tensors[CALIBRATED] = logits_of(classifier, pooled, 500)
        return trained

    def _tested(self) -> tuple[int, float] | None:
        if self.assembly.data.whole.test is None:
            return None
        _, logits, _ = self._run.evaluation.outputs("test")
        return len(logits), self._run.position.results[-1]["test"]["top1"]


def train(
    recipe: Mapping[str, Any] | Plan,
    watch: Watch,
    going_on: Saved | None = None,
    folder: Path | None = None,
    reopening: Callable[[Assembly, nn.Module], None] | None = None,
    observers: Sequence[Observer] = (),
) -> Trained:
    """Train a recipe.

    Args:
        recipe: as plain data; or its plan, made in ``watch.alone()`` and not trained yet.
        watch: looks at what the method does.
        going_on: go on from this checkpoint, of a run in `folder`.
        folder: where the run's files are; by default a folder that is gone afterwards.
        reopening: is given the run's parts and its calibrated classifier at the end.
        observers: look on, too.

    Raises:
        LtcoreError: anything that ends a run.
    """
    if folder is None:
        temporary = Path(tempfile.mkdtemp(prefix="ltcore-check-"))
        try:
            return train(recipe, watch, going_on, temporary, reopening, observers)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    with watch.alone():
        run = WatchedRun(plan_of(recipe) if isinstance(recipe, Mapping) else recipe, watch, folder, observers)
    run.reopening = reopening
    if going_on is not None:
        run.directory.last.write_bytes(going_on.content)
        metrics_of(run.directory).write_bytes(going_on.metrics)
    try:
        with unflushed():
            return run.outcome()
    except LtcoreError:
        raise
    except Exception as error:
        raise RunError(f"{type(error).__name__}: {error}") from error
    finally:
        gc.unfreeze()  # see `ltcore.testing.costs.Growth`
