"""The runs below some folders: those that have ended, and by name those that cannot be averaged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ltcore.contract.result import Result
from ltcore.errors import LtcoreError, RecipeError, fault
from ltcore.files.environment import compared, differences
from ltcore.files.reading import read_lines, read_result
from ltcore.files.unfinished import command, in_use
from ltcore.recipe.identity import flat, settings
from ltcore.recipe.loading import load_recipe


@dataclass(frozen=True)
class FoundRun:
    """A run that has ended.

    Attributes:
        path: its directory.
        name: its recipe's name.
        seed: its seed.
        settings: the recipe with its defaults as a flat mapping by path, without what changes no result. Then by names
            of `_trained_with` what the figures depend on beside it.
        published: the figures of papers that hold for these settings: ``metric``, ``value`` and ``sd`` in percent,
            ``source`` and ``note``.
        result: the content of ``result.json``.
    """

    path: Path
    name: str
    seed: int
    settings: dict[str, Any]
    published: list[dict[str, Any]]
    result: Result


@dataclass(frozen=True)
class LeftOut:
    """A run that is not averaged, and why."""

    path: Path
    why: str


def find_runs(paths: Sequence[Path], any_environment: bool = False) -> tuple[list[FoundRun], list[LeftOut]]:
    """The runs in `paths`, which are run directories or hold them at any depth; each run once, in the order of `paths`.

    Of runs with the same settings and seed the one that was begun last is kept, and the others are left out by name.

    Args:
        paths: run directories, or folders.
        any_environment: leave what a run was trained with, but for its data, out of its settings.

    Raises:
        RecipeError: a path does not exist or holds no run.
    """
    left_out: list[LeftOut] = []
    kept: dict[tuple[str, str, int], FoundRun] = {}
    seen: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise RecipeError(f"{path}: no such directory; name run directories, or folders that hold them")
        directories = list(_run_directories(path))
        if not directories:
            raise RecipeError(f"{path}: no run is in it (a run's directory has a recipe.yaml)")
        for directory in directories:
            if directory.resolve() in seen:
                continue
            seen.add(directory.resolve())
            found = _read(directory, any_environment)
            if isinstance(found, LeftOut):
                left_out.append(found)
                continue
            key = (found.name, json.dumps(found.settings, sort_keys=True), found.seed)
            other = kept.get(key)
            # A run's directory is named by the time when it began; a second one of that second has a suffix.
            if other is not None:
                first, found = sorted((other, found), key=lambda run: (run.path.name, str(run.path)))
                left_out.append(LeftOut(first.path, f"seed {found.seed} was run again later: {found.path}"))
            kept[key] = found
    return list(kept.values()), left_out


def _run_directories(path: Path) -> Iterator[Path]:
    """Run directories at or below `path`, by name; what is inside a run is its own.

    A sweep's job has a ``recipe.yaml``, too, and its run below ``runs``; before it has one, it stands for it.
    """
    for folder, names, files in os.walk(path, onerror=_refuse):
        if "job.json" in files and any(Path(folder).glob("runs/*/*/recipe.yaml")):
            names[:] = ["runs"]
        elif "recipe.yaml" in files or "result.json" in files:
            names.clear()
            yield Path(folder)
        names.sort()


def _refuse(error: OSError) -> None:
    raise RecipeError(f"{error.filename} cannot be looked into: {fault(error)}")


def _read(path: Path, any_environment: bool) -> FoundRun | LeftOut:
    if path.name.startswith("."):
        return LeftOut(path, "killed before its directory was complete")
    if (path / "job.json").is_file():
        return LeftOut(path, "it has not begun; start the sweep's or the table's command again")
    if not (path / "result.json").is_file():
        return LeftOut(path, f"no result.json: {_where_it_stands(path)}")
    try:
        result = read_result(path / "result.json")
        beside = _trained_with(result, any_environment)
        loaded = load_recipe(path / "recipe.yaml")
    except LtcoreError as error:
        return LeftOut(path, str(error).splitlines()[0])
    recipe = loaded.recipe
    told = dict(flat(recipe.model_dump(mode="json", exclude={"published"})))
    published = [
        {
            "metric": metric,
            "value": value,
            "sd": figure.sd if metric == "top1" else None,
            "source": figure.source,
            "note": figure.note,
        }
        for figure in recipe.published
        if all(key in told and told[key] == value for key, value in figure.when.items())
        for metric, value in figure.figures().items()
    ]
    return FoundRun(path, recipe.name, result["seed"], settings(loaded) | beside, published, result)


def _trained_with(result: Result, any_environment: bool) -> dict[str, Any]:
    """What a run's figures depend on beside its recipe, by names that are no paths, as far as its file tells."""
    found: dict[str, Any] = {}
    for name, part in result.get("data_fingerprint", {}).items():
        found[f"{name} data"] = part if isinstance(part, str) else f"{part['images']} images, {part['digest']}"
    if "data_changed" in result:
        found["data changed while it trained"] = "; ".join(result["data_changed"])
    if any_environment:
        return found
    if "code" in result:
        about = {"platform": "", "device_name": "unknown", "threads": "unknown", **result}
        found |= compared({**about, "python": result["versions"].get("python", "unknown")})[0]
    entries = result.get("environments", [])
    changes = [text for one, two in pairwise(entries) for text in differences(one, two)[0]]
    return found | ({"environment changed while it trained": "; ".join(changes)} if changes else {})


def _where_it_stands(path: Path) -> str:
    """How far an unfinished run has come, as its ``metrics.jsonl`` tells, and whether a process works on it."""
    try:
        last = read_lines(path / "metrics.jsonl")[-1]
        place = f"in stage '{last['stage']}' after epoch {last['epoch'] + 1}"
    except (LtcoreError, IndexError):
        place = "before its first epoch had ended"
    if in_use(path):
        return f"a process is still working on it, {place}"
    return f"it failed or was killed {place}; to go on: {command(path)}"
