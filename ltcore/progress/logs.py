"""``ltcore run RECIPE --log tensorboard --log wandb``: what the console is told goes to these, too.

A point lies at a step of the whole run. Where each stage begins on that axis is kept in the run's directory, so that a
resumed run goes on at the same place. What had been logged after its checkpoint is replaced.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ltcore.contract.result import Figures
from ltcore.errors import RecipeError, RunError
from ltcore.files.reading import read_json
from ltcore.files.writing import write_atomically
from ltcore.progress.console import Reporter, Row

#: What can be logged to -> the package that it takes, and the extra of ltcore that brings it.
_PACKAGES = {"tensorboard": ("tensorboard", "tb"), "wandb": ("wandb", "wandb")}


def refuse_missing(kinds: Sequence[str]) -> None:
    """Refuse a log whose package is not installed.

    Raises:
        RecipeError: naming the extra that brings it.
    """
    for kind in kinds:
        package, extra = _PACKAGES[kind]
        found = find_spec(package)
        if found is None or found.origin is None:  # a mere folder of that name, as wandb leaves one, has no origin
            raise RecipeError(f"--log {kind}: {package} is not installed; pip install 'ltcore[{extra}]'")


class Log(Protocol):
    """Where numbers are logged to."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by tag at a step of the run."""

    def close(self) -> None:
        """Write what is not written yet."""


class TensorBoardLog:
    """Event files in the run's directory ``tensorboard``.

    Args:
        directory: the run's directory.
        first: points at this step and later, from before the run was killed, are dropped.
    """

    def __init__(self, directory: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=first)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """See `Log`."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()  # or a killed run would lack what came before its checkpoint

    def close(self) -> None:
        """See `Log`."""
        self._writer.close()


class WandbLog:
    """A run of Weights & Biases. It refuses steps that it has already, so a resumed run repeats none.

    Args:
        directory: the run's directory, which also names the run.
        config: the recipe.
        identity: the run's id, the same when it is resumed.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any], identity: str) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project="ltcore",
                group=str(config["name"]),
                name=f"{config['name']}-{directory.name}",
                id=identity,
                resume="allow",
                dir=str(directory),
                config=dict(config),
            )
        except Exception as error:  # each of wandb's has a class of its own
            raise RunError(
                f"--log wandb: {error}; without network set WANDB_MODE=offline, and 'wandb sync' sends it later"
            ) from error

    def add(self, values: Mapping[str, float], step: int) -> None:
        """See `Log`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """See `Log`."""
        self._run.finish()


class LoggingReporter(Reporter):
    """A reporter that also logs losses, learning rates and evaluations.

    Args:
        kinds: names among ``tensorboard`` and ``wandb``.
        config: the recipe as plain data.
        settings: as for `Reporter`.
    """

    def __init__(self, kinds: Sequence[str], config: Mapping[str, Any], **settings: Any) -> None:
        super().__init__(**settings)
        self._kinds, self._config = list(dict.fromkeys(kinds)), config
        self._logs: list[Log] = []
        self._directory: Path | None = None
        self._memory: dict[str, Any] = {}
        self._stage, self._start, self._end = "", 0, 0

    def __exit__(self, *error: object) -> None:
        """Close the logs, error or not."""
        super().__exit__(*error)
        logs, self._logs, self._directory = self._logs, [], None
        for log in logs:
            log.close()

    def run_started(self, recipe_name: str, run_dir: Path | str, lines: Sequence[str]) -> None:
        """See `Reporter`; before it, as in a selection, nothing is logged."""
        super().run_started(recipe_name, run_dir, lines)
        if not self._kinds:
            return
        self._directory = Path(run_dir)
        self._memory = {"starts": {"0": 0}, "wandb": secrets.token_hex(8)}
        if (path := self._directory / "log.json").exists():
            self._memory = read_json(path)

    def stage_started(
        self,
        name: str,
        index: int,
        count: int,
        epochs: int,
        steps_per_epoch: int,
        first_epoch: int,
        first_step: int = 0,
    ) -> None:
        """See `Reporter`."""
        super().stage_started(name, index, count, epochs, steps_per_epoch, first_epoch, first_step)
        if self._directory is None:
            return
        self._stage, starts = name, self._memory["starts"]
        # A stage that another run has trained (--from) was logged there.
        self._start = starts.setdefault(str(index), self._end)
        # One more than its steps, so that the next stage's first point is not at the place of this one's evaluation.
        self._end = starts[str(index + 1)] = self._start + epochs * steps_per_epoch + 1
        write_atomically(self._directory / "log.json", (json.dumps(self._memory) + "\n").encode())
        self._open(self._directory, self._start + first_epoch * steps_per_epoch + first_step)

    def _open(self, directory: Path, first: int) -> None:
        if self._logs:
            return
        for kind in self._kinds:
            if kind == "tensorboard":
                self._logs.append(TensorBoardLog(directory, first))
            else:
                self._logs.append(WandbLog(directory, self._config, self._memory["wandb"]))

    def step(self, epoch: int, step: int, loss: Callable[[], float] | None, images_per_second: float) -> None:
        """See `Reporter`."""
        super().step(epoch, step, loss, images_per_second)
        if self._logs and loss is not None:
            self._add({f"{self._stage}/loss_so_far": loss()}, self._start + epoch * self._steps + step)

    def epoch_ended(
        self,
        epoch: int,
        epochs: int,
        loss: float | None,
        lr: float,
        seconds: float,
        images_per_second: float,
        validation: Mapping[str, float | None] | None = None,
    ) -> None:
        """See `Reporter`."""
        super().epoch_ended(epoch, epochs, loss, lr, seconds, images_per_second, validation)
        values = {"loss": loss, "lr": lr, "images_per_second": images_per_second}
        values |= {f"validation/{name}": value for name, value in (validation or {}).items()}
        named = {f"{self._stage}/{name}": value for name, value in values.items()}
        self._add(named, self._start + (epoch + 1) * self._steps)

    def stage_ended(self, name: str, figures: Figures | None, seconds: float) -> None:
        """See `Reporter`."""
        super().stage_ended(name, figures, seconds)
        self._add({f"{name}/{key}": value for key, value in (figures or {}).items()}, self._end - 1)

    def finished(self, rows: Sequence[Row], run_dir: Path | str) -> None:
        """See `Reporter`."""
        super().finished(rows, run_dir)
        if self._directory is None:
            return  # the run had ended before
        last = max(self._memory["starts"].values())
        self._open(self._directory, last)  # where only the results were missing
        if rows[-1][0] == "after calibration":
            self._add({f"after_calibration/{key}": value for key, value in rows[-1][1].items()}, last)

    def _add(self, values: Mapping[str, Any], step: int) -> None:
        """Log those of the values that are numbers."""
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
        for log in self._logs:
            log.add(numbers, step)
