"""Small files of runs that have ended, ``results/runs/*.json``: what tables are made of, and what is committed.

The run's directory may be gone, or on another machine: a record has what a table needs of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltcore.errors import RunError
from ltcore.files.reading import read_json, read_result
from ltcore.files.writing import write_atomically
from ltcore.recipe.identity import digest
from ltcore.recipe.loading import load_recipe

#: What tells such a file from others in the folder.
FORMAT = "ltcore run 1"
_FIELDS = {"recipe", "digest", "seed", "figures", "stages", "code", "data", "cells"}


@dataclass(frozen=True)
class Record:
    """A run that has ended.

    Attributes:
        path: its file.
        content: what `record_of` has made.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """That of its recipe."""
        return str(self.content["digest"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.content["seed"])

    @property
    def note(self) -> str:
        """What a reader has to know of it; a person has written it into the file."""
        return str(self.content.get("note", ""))

    def other_code(self, now: Mapping[str, str]) -> list[str]:
        """Distributions whose code was another when it was trained; `now` is their code by name."""
        then = self.content["code"]
        return [name for name, code in now.items() if then.get(name, code) != code]

    def figures(self, stage: str | None, analysis: str | None = None) -> Mapping[str, float | None]:
        """Its figures: of an analysis, of a stage's end, or after calibration; empty where it has no such.

        They are fractions; only `other`, of an analysis, is any number.
        """
        if analysis is not None:
            found = self.content.get("analyses", {}).get(analysis)
        else:
            found = self.content["figures"] if stage is None else self.content["stages"].get(stage)
        return found if isinstance(found, dict) else {}


def record_of(run: Path, cells: Sequence[str], analyses: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a record keeps of a run.

    Args:
        run: the run's directory.
        cells: the cells that it was trained for, ``TABLE/ROW/COLUMN``.
        analyses: by name, the figures of analyses that were made of it.

    Returns:
        ``recipe``, ``digest`` and ``seed``; ``figures`` after calibration, ``before_calibration`` and ``stages``, as
        fractions; ``seconds`` in the stages' steps; ``device``, ``device_name``, ``threads``, ``versions`` and
        ``code``; ``data``, its fingerprint; ``finished``, the day; ``commit``, where it was trained in a checkout;
        ``cells``; ``analyses``, where there are any.

    Raises:
        RunError: the run is damaged.
    """
    result = read_result(run / "result.json")
    loaded = load_recipe(run / "recipe.yaml", runs_code=False)
    kept = {"top1", "top5", "many", "medium", "few", "balanced_accuracy", "macro_f1", "ece"}

    def short(figures: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in figures.items() if name in kept}

    from datetime import date

    ended = date.fromtimestamp((run / "result.json").stat().st_mtime)
    return {
        "format": FORMAT,
        "recipe": result["recipe"],
        "digest": digest(loaded),
        "seed": result["seed"],
        "cells": sorted(set(cells)),
        "figures": short(result["after_calibration"]),
        "before_calibration": short(result["before_calibration"]),
        "stages": {stage["name"]: short(stage["test"]) for stage in result["stages"]},
        "seconds": round(sum(stage["seconds"] for stage in result["stages"]), 1),
        "device": result["device"],
        "device_name": result.get("device_name", ""),
        "threads": result["threads"],
        "versions": result["versions"],
        "code": result.get("code", {}),
        "data": result.get("data_fingerprint", {}),
        "finished": ended.isoformat(),
        **_commit(),
        **({"analyses": dict(analyses)} if analyses else {}),
    }


def write_record(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write a record; one that is there keeps the cells that it was trained for, and if it is the same run's, analyses.

    Raises:
        RunError: it cannot be written.
    """
    path = folder / f"{content['digest']}-seed{content['seed']}.json"
    cells, analyses = set(content["cells"]), content.get("analyses", {})
    with suppress(RunError):
        if path.exists():
            before = read_json(path)
            cells |= set(before.get("cells", ()))
            if all(before.get(key) == content.get(key) for key in ("figures", "seconds", "code", "data", "finished")):
                analyses = {**before.get("analyses", {}), **analyses}
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**content, "cells": sorted(cells), **({"analyses": analyses} if analyses else {})}
    text = json.dumps(whole, indent=1) + "\n"
    write_atomically(path, text.encode(), "then start the same command again")
    return path


class Records:
    """The records in some folders, by the digest of their recipe and seed.

    Args:
        folders: where they are; what is in them beside records is passed over.

    Raises:
        RunError: a record is damaged.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._by_digest: dict[str, dict[int, Record]] = {}
        self._by_cell: dict[str, list[Record]] = {}
        for record in _read(folders):
            self._by_digest.setdefault(record.digest, {})[record.seed] = record
            for cell in record.content["cells"]:
                self._by_cell.setdefault(cell, []).append(record)

    def of(self, recipe_digest: str) -> dict[int, Record]:
        """The records of a recipe by seed."""
        return self._by_digest.get(recipe_digest, {})

    def once_of(self, cell: str) -> list[Record]:
        """The records of runs that were trained for a cell, whatever its recipe was then."""
        return self._by_cell.get(cell, [])


def _read(folders: Sequence[Path]) -> Iterator[Record]:
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            content = read_json(path)
            if isinstance(content, dict) and content.get("format") == FORMAT:
                if not content.keys() >= _FIELDS:
                    raise RunError(f"{path}: is damaged: it lacks {', '.join(sorted(_FIELDS - content.keys()))}")
                if wrong := _no_figures(content):
                    raise RunError(f"{path}: is damaged: {wrong}")
                yield Record(path, content)


def _no_figures(content: Mapping[str, Any]) -> str | None:
    """The first of a record's figures that cannot be one, and why."""
    parts = {"figures": content["figures"], **content["stages"], **content.get("analyses", {})}
    for part, figures in parts.items():
        for name, value in figures.items() if isinstance(figures, dict) else [("", figures)]:
            least, most = (-sys.float_info.max, sys.float_info.max) if name == "other" else (0, 1)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and least <= value <= most):
                return f"{part}.{name} = {value!r} is no {'number' if name == 'other' else 'figure between 0 and 1'}"
    return None


def _commit() -> dict[str, str]:
    """The commit of the checkout that core is run from; empty where it is installed from a wheel."""
    try:
        told = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except OSError:
        return {}
    return {"commit": told.stdout.strip()} if told.returncode == 0 else {}
