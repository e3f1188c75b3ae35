"""The directory of a run: what it holds, how it is begun, found again and locked."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore import ranks
from ltcore.contract.result import Result
from ltcore.errors import LtcoreError, RecipeError, RunError, fault
from ltcore.files import checkpoint, reading
from ltcore.files.unfinished import in_use
from ltcore.files.writing import append, own, telling, write_atomically
from ltcore.recipe.yaml_source import parse
from ltcore.untrusted import finite

if TYPE_CHECKING:
    from torch import Tensor


class RunDirectory:
    """``OUT/<recipe>/<run id>/`` with ``recipe.yaml``, ``environment.json``, ``data.npz``, ``metrics.jsonl``,
    ``checkpoints/``, ``predictions.npz`` and, once the run has ended, ``result.json``.
    """  # noqa: D205

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "checkpoints" / "last.safetensors"
        #: The checkpoint before the last, for when the last is damaged.
        self.previous = path / "checkpoints" / "previous.safetensors"
        #: What the run remembers of its data; see `ltcore.data.fingerprint`.
        self.data = path / "data.npz"
        #: The calibrated model, written when the run has ended; see `ltcore.evaluation.calibrated`.
        self.calibrated = path / "checkpoints" / "calibrated.safetensors"
        #: Cached features that do not lie in memory, while their stage is trained.
        self.features = path / "features"

    @classmethod
    def create(
        cls, out: Path, name: str, seed: int, recipe_text: str, code: Mapping[str, bytes] | None = None
    ) -> RunDirectory:
        """A new directory, complete before it gets its name; of several processes the first makes it.

        Args:
            out: where.
            name: the recipe's name.
            seed: the run's seed.
            recipe_text: for ``recipe.yaml``.
            code: files of Python that the recipe names, by name, kept beside it.

        Raises:
            RunError: it cannot be written.
        """
        if not ranks.leading():
            return cls(Path(ranks.told(None)))
        identity = f"{datetime.now():%Y%m%d-%H%M%S}-seed{seed}"
        parent = out / name
        temporary = parent / f".{identity}-{secrets.token_hex(4)}"
        try:
            (temporary / "checkpoints").mkdir(parents=True)
            (temporary / "recipe.yaml").write_text(recipe_text, encoding="utf-8")
            for file, content in (code or {}).items():
                (temporary / file).write_bytes(content)
            path, again = parent / identity, 2
            while True:
                try:
                    temporary.rename(path)
                    break
                except OSError:
                    if not path.exists():
                        raise
                    path, again = parent / f"{identity}-{again}", again + 1
        except OSError as error:
            why = fault(error, "or choose another with --out")
            raise RunError(f"cannot write the run directory under {out}: {why}") from error
        ranks.told(str(path))
        return cls(path)

    @classmethod
    def find(cls, out: Path, name: str, recipe_text: str) -> RunDirectory:
        """The latest run of exactly this recipe, whatever stands there that may change while a run goes on.

        Raises:
            RecipeError: there is none.
        """
        # A name with a dot is a directory whose process was killed before the directory was complete.
        runs = [path for path in (out / name).glob("[!.]*") if (path / "recipe.yaml").is_file()]
        wanted = _lasting(recipe_text)
        same = [path for path in runs if _lasting_of(path) == wanted]
        if not same:
            other = f" ({len(runs)} there differ in a setting; see their recipe.yaml)" if runs else ""
            raise RecipeError(f"--resume: no run of this recipe in {out / name}{other}; start it without --resume")
        return cls(max(same, key=lambda path: (path / "recipe.yaml").stat().st_mtime_ns))  # written when it began

    @classmethod
    def latest_unfinished(cls, out: Path) -> tuple[RunDirectory, int]:
        """The run below `out` that was begun last, of those that have not ended and that no process works on.

        Returns:
            The run, and how many others there are.

        Raises:
            RecipeError: there is none.
        """
        paths = [path.parent for path in out.glob("*/[!.]*/recipe.yaml") if not (path.parent / "result.json").exists()]
        runs = [cls(path) for path in paths]
        free = [run for run in runs if not in_use(run.path)]
        if not free:
            busy = f", but for {len(runs)} that a process is working on" if runs else ""
            raise RecipeError(f"--resume: every run in {out} has ended{busy}; name a RECIPE, or another --out")
        return max(free, key=lambda run: (run.path / "recipe.yaml").stat().st_mtime_ns), len(free) - 1

    def keep_recipe(self, recipe_text: str) -> bool:
        """Bring ``recipe.yaml`` up to date with what may change while a run goes on; returns whether it differed."""
        path = self.path / "recipe.yaml"
        if reading.read_text(path) == recipe_text:
            return False
        if not ranks.leading():
            return True
        begun = path.stat()
        write_atomically(path, recipe_text.encode())
        os.utime(path, ns=(begun.st_atime_ns, begun.st_mtime_ns))  # which says when the run was begun
        return True

    def keep_code(self, code: Mapping[str, bytes]) -> None:
        """Bring the run's copies of files that its recipe names up to date with what is run."""
        for name, content in code.items():
            path = self.path / name
            if not path.is_file() or path.read_bytes() != content:
                write_atomically(path, content)

    @property
    def skips_broken(self) -> bool:
        """Whether the run's recipe leaves broken images out."""
        data = parse(reading.read_text(self.path / "recipe.yaml"), str).plain().get("data")
        return isinstance(data, dict) and data.get("broken") == "skip"

    def inner(self, name: str) -> RunDirectory:
        """The directory of a run that is part of this one, made where it is missing."""
        path = self.path / name
        with telling(path):
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        return RunDirectory(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out while this one works here; the lock ends with the block, or with the process.

        Of several that train together the first holds it for all.

        Raises:
            RunError: another process holds it, it cannot be written, or a folder in it is a link to somewhere else.
        """
        if not ranks.leading():
            yield
            return
        for folder in (
            self.features,
            self.path / "select",
            *self.path.glob("select/*"),
            *self.path.glob("**/checkpoints"),
        ):
            if folder.is_symlink():
                raise RunError(
                    f"{folder} is a link to {os.readlink(folder)}, and a run writes nothing outside of its directory; "
                    "move the folder itself here, or link the whole folder of runs"
                )
        path = self.path / "lock"
        with telling(path):
            descriptor = own(path, os.O_WRONLY | os.O_CREAT)
        with open(descriptor, "wb"):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{self.path}: another process is working on this run") from error
            except OSError as error:
                raise RunError(f"{path} cannot be locked: {fault(error)}") from error
            yield

    @property
    def finished(self) -> bool:
        """Whether the run has written its result."""
        return (self.path / "result.json").is_file()

    def stage_file(self, index: int, name: str) -> Path:
        """The model as it was at the end of a stage."""
        return self.path / "checkpoints" / f"stage-{index}-{name}.safetensors"

    def boundary(self, index: int) -> Path:
        """The checkpoint without tensors that was written at a stage's end, kept beside the stage's file."""
        return self.path / "checkpoints" / f"boundary-{index}.safetensors"

    def checkpoints(self) -> list[Path]:
        """What a run can go on from, as far as it is there: last, the one before it, the stages' ends, latest first."""
        ends = {path.stem.partition("-")[2]: path for path in self.last.parent.glob("boundary-*.safetensors")}
        numbered = sorted((int(number), path) for number, path in ends.items() if number.isdecimal())
        latest_first = [path for _, path in reversed(numbered)]
        return [path for path in (self.last, self.previous, *latest_first) if path.exists()]

    def write_last(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint, and keep the one before it."""
        if not ranks.leading():
            return
        if self.last.exists():
            # A second name for the same file, so that at every moment one is called the last.
            new = self.previous.with_suffix(".new")
            new.unlink(missing_ok=True)
            try:
                os.link(self.last, new)
            except OSError:  # a file system without links
                self.last.replace(new)
            new.replace(self.previous)
        checkpoint.save(self.last, tensors, state)

    def write_json(self, name: str, content: Mapping[str, object] | Sequence[object]) -> None:
        """Write a JSON file atomically."""
        write_atomically(self.path / name, (json.dumps(finite(content), indent=2) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run.

        Raises:
            RunError: it cannot be read, or is not JSON.
        """
        content: Any = reading.read_json(self.path / name)
        return content

    def read_result(self) -> Result:
        """The content of ``result.json``, see `ltcore.files.reading.read_result`."""
        return reading.read_result(self.path / "result.json")

    def append_metrics(self, line: dict[str, Any]) -> int:
        """Add a line to ``metrics.jsonl``; returns the file's size, to which a resumed run cuts it back."""
        return append(self.path / "metrics.jsonl", json.dumps(finite(line)) + "\n")

    def cut_metrics(self, size: int) -> bool:
        """Drop what was written after a checkpoint, since it will be written again.

        Returns:
            Whether all was there that the checkpoint knows of.
        """
        path = self.path / "metrics.jsonl"
        if not ranks.leading():
            return True
        with telling(path):
            there = path.stat().st_size if path.exists() else 0
            if there > size:
                with open(own(path, os.O_WRONLY), "ab") as file:
                    file.truncate(size)
        return there >= size


def _lasting(recipe_text: str) -> dict[str, Any]:
    """A recipe without what may be changed while a run goes on: it changes no figure, or mends what ended the run."""
    source: dict[str, Any] = parse(recipe_text, str).plain()
    changing = {"published", "checkpoint_seconds"}
    kept = {key: value for key, value in source.items() if key not in changing}
    if isinstance(data := kept.get("data"), dict):
        kept["data"] = {key: value for key, value in data.items() if key not in ("broken", "workers")}
    return kept


def _lasting_of(run: Path) -> dict[str, Any] | None:
    """The same of the recipe of a run; None where that is damaged, which is no reason to miss another run."""
    try:
        return _lasting(reading.read_text(run / "recipe.yaml"))
    except (LtcoreError, ValueError, AttributeError):
        return None
