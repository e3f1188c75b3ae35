"""The directory of a run: what it holds, how it is begun, found again and locked."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ltcore.contract.result import Result
from ltcore.errors import LtcoreError, RecipeError, RunError, fault
from ltcore.files import reading
from ltcore.files.writing import append, own, telling, write_atomically
from ltcore.recipe.yaml_source import dump_yaml, parse
from ltcore.untrusted import finite

_PACKAGES = ("ltcore", "torch", "torchvision", "timm", "numpy", "pluggy", "pydantic", "safetensors", "scikit-learn")


class RunDirectory:
    """``OUT/<recipe>/<run id>/`` with ``recipe.yaml``, ``environment.json``, ``metrics.jsonl``, ``checkpoints/``,
    ``predictions.npz`` and, once the run has ended, ``result.json``.
    """  # noqa: D205

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "checkpoints" / "last.safetensors"
        #: The calibrated model, written when the run has ended; see `ltcore.evaluation.calibrated`.
        self.calibrated = path / "checkpoints" / "calibrated.safetensors"

    @classmethod
    def create(cls, out: Path, name: str, seed: int, recipe_text: str) -> RunDirectory:
        """A new directory, complete before it gets its name.

        Raises:
            RunError: it cannot be written.
        """
        identity = f"{datetime.now():%Y%m%d-%H%M%S}-seed{seed}"
        parent = out / name
        temporary = parent / f".{identity}-{secrets.token_hex(4)}"
        try:
            (temporary / "checkpoints").mkdir(parents=True)
            (temporary / "recipe.yaml").write_text(recipe_text, encoding="utf-8")
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
        return cls(path)

    @classmethod
    def find(cls, out: Path, name: str, recipe_text: str) -> RunDirectory:
        """The latest run of exactly this recipe, whatever figures of papers stand in it.

        Raises:
            RecipeError: there is none.
        """
        # A name with a dot is a directory whose process was killed before the directory was complete.
        runs = [path for path in (out / name).glob("[!.]*") if (path / "recipe.yaml").is_file()]
        wanted = _without_published(recipe_text)
        same = [path for path in runs if _recipe_of(path) == wanted]
        if not same:
            other = f" ({len(runs)} there differ in a setting; see their recipe.yaml)" if runs else ""
            raise RecipeError(f"--resume: no run of this recipe in {out / name}{other}; start it without --resume")
        return cls(max(same, key=lambda path: (path / "recipe.yaml").stat().st_mtime_ns))  # written when it began

    def inner(self, name: str) -> RunDirectory:
        """The directory of a run that is part of this one, made where it is missing."""
        path = self.path / name
        with telling(path):
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        return RunDirectory(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out while this one works here; the lock ends with the block, or with the process.

        Raises:
            RunError: another process holds it, it cannot be written, or a folder in it is a link to somewhere else.
        """
        for folder in (self.path / "select", *self.path.glob("select/*"), *self.path.glob("**/checkpoints")):
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

    def write_json(self, name: str, content: Mapping[str, object]) -> None:
        """Write a JSON file atomically."""
        write_atomically(self.path / name, (json.dumps(finite(content), indent=2) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises:
            RunError: it cannot be read, or holds no object.
        """
        content = reading.read_json(self.path / name)
        if not isinstance(content, dict):
            raise reading.Damaged(self.path / name, "it holds no object")
        return content

    def read_result(self) -> Result:
        """The content of ``result.json``, see `ltcore.files.reading.read_result`."""
        return reading.read_result(self.path / "result.json")

    def append_metrics(self, line: dict[str, Any]) -> int:
        """Add a line to ``metrics.jsonl``; returns the file's size, to which a resumed run cuts it back."""
        return append(self.path / "metrics.jsonl", json.dumps(finite(line)) + "\n")

    def cut_metrics(self, size: int) -> None:
        """Drop what was written after a checkpoint, since it will be written again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            with telling(path), open(own(path, os.O_WRONLY), "ab") as file:
                file.truncate(min(size, path.stat().st_size))


def _recipe_of(run: Path) -> str | None:
    """The recipe of a run for comparing; None where it cannot be read, which is no other run's fault."""
    try:
        return _without_published(reading.read_text(run / "recipe.yaml"))
    except LtcoreError:
        return None


def _without_published(recipe_text: str) -> str:
    """A recipe's text without the figures of papers, which may be added or put right while a run goes on."""
    if "published:" not in recipe_text:
        return recipe_text
    source = parse(recipe_text, str).plain()
    return dump_yaml({key: value for key, value in source.items() if key != "published"})


def environment(device: str, distributions: Iterable[str]) -> dict[str, Any]:
    """What a figure depends on beside the recipe: versions, platform, device, threads."""
    import torch

    versions = {}
    for name in sorted({*_PACKAGES, *distributions}):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed as a distribution"
    versions["torch"] = str(torch.__version__)  # with the build, which the distribution's version leaves out
    named = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": device,
        "device_name": named,
        "threads": torch.get_num_threads(),
        "versions": versions,
    }
