"""Where a run stands, as its checkpoints keep it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ltcore.contract.result import AccelerationRecord, StageResult, ValidationRecord
from ltcore.errors import RunError
from ltcore.files import checkpoint
from ltcore.files.checkpoint import Damaged

if TYPE_CHECKING:
    from ltcore.contract.recipe import Stage
    from ltcore.files.run_directory import RunDirectory


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        stage: index of the stage.
        epoch: epoch of the stage.
        step: steps of the epoch that are done.
        begun: whether the stage's on_stage_start has been called.
        seconds: training time of the stage so far.
        images: rows trained on in the stage so far.
        metrics_size: bytes of metrics.jsonl.
        validation: what the stage's validations have come to; None before the first.
        acceleration: how the stage's steps are made quicker; None before it has begun.
        results: what was recorded for the stages that have ended.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    begun: bool = False
    seconds: float = 0.0
    images: int = 0
    metrics_size: int = 0
    validation: ValidationRecord | None = None
    acceleration: AccelerationRecord | None = None
    results: list[StageResult] = field(default_factory=list)

    def end_stage(self, index: int) -> None:
        """Stand at the beginning of the stage after the one at `index`."""
        self.stage, self.epoch, self.step, self.begun = index + 1, 0, 0, False
        self.seconds, self.images, self.acceleration, self.validation = 0.0, 0, None, None

    def write_boundary(self, directory: RunDirectory) -> None:
        """A checkpoint between two stages: the model is in the stage's file, and the next optimiser is a new one.

        It is written twice: the last checkpoint is soon replaced, and the other is for when that one is damaged.
        """
        state = {"position": asdict(self), "optimizer": {}}
        checkpoint.save(directory.boundary(self.stage - 1), {}, state)
        directory.write_last({}, state)

    def problem(self, stages: Sequence[Stage], inside: bool) -> str:
        """Why no run of these stages stands here; empty where one can.

        How many steps an epoch has is known only when the stage is set up (`ltcore.training.stage`).

        Args:
            stages: the recipe's.
            inside: whether the checkpoint holds a model, as only one inside a stage does.
        """
        counts = (self.stage, self.epoch, self.step, self.images, self.metrics_size)
        if not all(type(count) is int and count >= 0 for count in counts) or type(self.begun) is not bool:
            return "its position is not of whole numbers from 0"
        if type(self.seconds) not in (int, float) or not 0 <= self.seconds < math.inf:
            return f"its time is {self.seconds!r} seconds"
        if self.acceleration is not None and not _is_record(self.acceleration):
            return f"its acceleration is {self.acceleration!r}"
        if self.validation is not None and not _is_validation(self.validation):
            return f"its validations are {self.validation!r}"
        if self.stage + inside > len(stages):
            return f"it stands in stage {self.stage + 1} of {len(stages)}"
        names = [stage.name for stage in stages[: self.stage]]
        if [result.get("name") for result in self.results] != names:
            return f"it holds no figures of the stages that had ended, {', '.join(names) or 'none'}"
        if not inside and (self.epoch or self.step or self.begun):
            return "it stands inside a stage, but holds no model"
        epochs = stages[self.stage].epochs if inside else None
        if epochs is not None and self.epoch > epochs:
            return f"it stands in epoch {self.epoch + 1} of {epochs}"
        return ""


def _is_record(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(found.get(key), str) for key in ("asked", "chosen", "why"))


def _is_validation(found: Any) -> bool:
    counts = ("best_epoch", "since", "epochs")
    return (
        isinstance(found, dict)
        and set(found) == {"best", "stopped", *counts}
        and all(type(found[key]) is int and found[key] >= 0 for key in counts)
        and type(found["best"]) in (int, float)
        and type(found["stopped"]) is bool
    )


@dataclass(frozen=True)
class Restored:
    """What a checkpoint holds.

    Attributes:
        position: where the run stood.
        tensors: the model's and the optimiser's; empty between two stages.
        optimizer: the optimiser's plain state.
    """

    position: Position
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]

    @classmethod
    def read(cls, path: Path, device: Any) -> Restored:
        """What `path` holds, on `device`.

        Raises:
            Damaged: it cannot be read, or another version of ltcore wrote it.
        """
        tensors, state = checkpoint.load(path, device)
        try:
            return cls(Position(**state["position"]), tensors, state["optimizer"])
        except (KeyError, TypeError) as error:
            raise Damaged(f"{path} is no checkpoint of this version of ltcore ({error}). {checkpoint.ANEW}") from error


def find(directory: RunDirectory, stages: Sequence[Stage], device: Any, tell: Callable[[str], None]) -> Restored | None:
    """The latest checkpoint of a run that can be used; None where there is none yet.

    That is one which is whole, stands in the recipe, and whose ended stages have whole files. What is not is put aside
    under another name, so that it never takes the place of a good one.

    Args:
        directory: the run's.
        stages: the recipe's.
        device: where the tensors are wanted.
        tell: is told about each checkpoint that cannot be used.

    Raises:
        RunError: there are some, and none can be used.
    """
    found = directory.checkpoints()
    problems: list[str] = []
    for path in found:
        try:
            restored = _checked(path, directory, stages, device)
        except Damaged as error:
            problems.append(str(error))
            continue
        if problems:
            for damaged, problem in zip(found, problems, strict=False):
                damaged.replace(damaged.with_name(f"{damaged.name}.damaged"))
                tell(f"warning: {problem.removesuffix(f' {checkpoint.ANEW}')}")
            tell(f"warning: going on from {path.name} instead, whose training is repeated from there to the same bits")
        elif path != directory.last:
            tell(f"warning: {directory.last} is missing; going on from {path.name} instead")
        return restored
    if problems:
        more = f" None of the {len(problems)} checkpoints of the run can be used" if len(problems) > 1 else ""
        raise RunError(f"{problems[0]}{more and '.'}{more}")
    return None


def _checked(path: Path, directory: RunDirectory, stages: Sequence[Stage], device: Any) -> Restored:
    """What a checkpoint holds.

    Raises:
        Damaged: it cannot be used.
    """
    restored = Restored.read(path, device)
    problem = restored.position.problem(stages, bool(restored.tensors))
    if problem:
        raise Damaged(f"{path}: no position of this recipe: {problem}. {checkpoint.ANEW}")
    for index, stage in enumerate(stages[: restored.position.stage]):
        checkpoint.load(directory.stage_file(index, stage.name))
    return restored
