"""The directory of a run: what it holds, how it is begun, found again and locked."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ltcore.contract.result import Result
from ltcore.errors import RecipeError, RunError
from ltcore.files.checkpoint import write_atomically
from ltcore.recipe.yaml_source import dump_yaml, parse

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
        temporary = parent / f".{identity}-{os.getpid()}"
        try:
            (temporary / "checkpoints").mkdir(parents=True)
            (temporary / "recipe.yaml").write_text(recipe_text)
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
            raise RunError(f"cannot write the run directory under {out}: {error}; choose another with --out") from error
        return cls(path)

    @classmethod
    def find(cls, out: Path, name: str, recipe_text: str) -> RunDirectory:
        """The latest run of exactly this recipe, whatever figures of papers and ``data.broken`` stand in it.

        Raises:
            RecipeError: there is none.
        """
        # A name with a dot is a directory whose process was killed before the directory was complete.
        runs = [path for path in (out / name).glob("[!.]*") if (path / "recipe.yaml").is_file()]
        wanted = _what_trains(recipe_text)
        same = [path for path in runs if _what_trains((path / "recipe.yaml").read_text()) == wanted]
        if not same:
            other = f" ({len(runs)} there differ in a setting; see their recipe.yaml)" if runs else ""
            raise RecipeError(f"--resume: no run of this recipe in {out / name}{other}; start it without --resume")
        return cls(max(same, key=lambda path: (path / "recipe.yaml").stat().st_mtime_ns))  # written when it began

    @property
    def skips_broken(self) -> bool:
        """Whether the run's recipe leaves broken images out."""
        data = parse((self.path / "recipe.yaml").read_text(), str).plain().get("data")
        return isinstance(data, dict) and data.get("broken") == "skip"

    def inner(self, name: str) -> RunDirectory:
        """The directory of a run that is part of this one, made where it is missing."""
        path = self.path / name
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        return RunDirectory(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out while this one works here; the lock ends with the block, or with the process.

        Raises:
            RunError: another process holds it.
        """
        with open(self.path / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunError(f"{self.path}: another process is working on this run") from error
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
        write_atomically(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run."""
        content: dict[str, Any] = json.loads((self.path / name).read_text())
        return content

    def read_result(self) -> Result:
        """The content of ``result.json``; see `ltcore.contract.result` for what an older file may lack."""
        content: Result = json.loads((self.path / "result.json").read_text())
        return content

    def append_metrics(self, line: dict[str, Any]) -> int:
        """Add a line to ``metrics.jsonl``; returns the file's size, to which a resumed run cuts it back."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            return file.tell()

    def cut_metrics(self, size: int) -> None:
        """Drop what was written after a checkpoint, since it will be written again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            os.truncate(path, min(size, path.stat().st_size))


def _what_trains(recipe_text: str) -> str:
    """A recipe's text without what may change while a run goes on: figures of papers, and ``data.broken``."""
    if "published:" not in recipe_text and "broken:" not in recipe_text:
        return recipe_text
    source = parse(recipe_text, str).plain()
    source.pop("published", None)
    if isinstance(source.get("data"), dict):
        source["data"].pop("broken", None)
    return dump_yaml(source)


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
