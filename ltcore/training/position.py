"""Where a run stands, as its checkpoints keep it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ltcore.contract.result import StageResult
from ltcore.errors import RunError
from ltcore.files import checkpoint


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
        results: what was recorded for the stages that have ended.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    begun: bool = False
    seconds: float = 0.0
    images: int = 0
    metrics_size: int = 0
    results: list[StageResult] = field(default_factory=list)

    def end_stage(self, index: int) -> None:
        """Stand at the beginning of the stage after the one at `index`."""
        self.stage, self.epoch, self.step, self.begun = index + 1, 0, 0, False
        self.seconds, self.images = 0.0, 0

    def write_boundary(self, path: Path) -> None:
        """A checkpoint between two stages: the model is in the stage's file, and the next optimiser is a new one."""
        checkpoint.save(path, {}, {"position": asdict(self), "optimizer": {}})


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
            RunError: it cannot be read, or another version of ltcore wrote it.
        """
        tensors, state = checkpoint.load(path, device)
        try:
            return cls(Position(**state["position"]), tensors, state["optimizer"])
        except (KeyError, TypeError) as error:
            raise RunError(
                f"{path} is no checkpoint of this version of ltcore ({error}). Begin the run anew, without --resume"
            ) from error
