"""Which recipes are trained on a GPU machine, in what form and order."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Recipes ``cifar100_lt_NAME.yaml`` in order of worth. Several seeds go through the whole list one after the other.
ORDER = "ce ldam_drw balanced_softmax cdt mixup_crt safa_ldam_drw stg glag ofa mislas".split()
#: How `cifar100_lt` prepares its images; the copy that travels is an .npz file, which does not say so itself.
CIFAR100 = {
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.2023, 0.1994, 0.2010],
    "crop_padding": 4,
    "flip": True,
}
TAIL = {"kind": "exponential", "factor": 100}
#: Memory of the card that one run of ResNet-32 is given, in GiB, with what CUDA itself takes for a process.
GIB_A_RUN = 3.0


@dataclass(frozen=True, eq=False)
class Job:
    """A recipe with a seed.

    Attributes:
        name: the recipe's name.
        seed: the seed.
        file: the recipe file to run.
        recipe: the resolved recipe as plain data, without defaults.
        digest: of what the run's figures depend on.
        first_stage: of what the first stage depends on; None where it is not to be shared.
    """

    name: str
    seed: int
    file: Path
    recipe: dict[str, Any]
    digest: str
    first_stage: str | None

    @property
    def folder(self) -> str:
        """Name of the folder with its run."""
        return f"{self.name}-seed{self.seed}-{self.digest[:8]}"


def digest_of(content: Any) -> str:
    """Digest of plain data, the same for the same content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def recipe_digest(recipe: dict[str, Any]) -> str:
    """Digest of a resolved recipe without what changes no figure: texts, published figures, where the data lies."""
    kept = {key: value for key, value in recipe.items() if key not in ("description", "published", "device")}
    data = dict(kept["data"])
    data["options"] = {k: v for k, v in (data.get("options") or {}).items() if k not in ("path", "root")}
    return digest_of(kept | {"data": data})


def changes(recipe: dict[str, Any], data: Path, short: bool) -> dict[str, Any]:
    """What is changed in a recipe of CIFAR-100-LT: the copy of the data, and fp32 as in the published protocol.

    Args:
        recipe: the recipe as plain data.
        data: the .npz file, whose tail is cut already.
        short: one epoch or three steps a stage and a small network, for a rehearsal.

    Raises:
        ValueError: the recipe wants another data set, or another tail.
    """
    asked = recipe["data"]
    tail = {key: (asked.get("imbalance") or TAIL).get(key) for key in TAIL}
    if asked["use"] != "cifar100_lt" or tail != TAIL:
        raise ValueError(f"{recipe['name']} does not train on CIFAR-100-LT at imbalance 100, which is what travels")
    own = {key: value for key, value in asked.items() if key not in ("use", "options", "imbalance")}
    stages: dict[str, dict[str, Any]] = {stage["name"]: {"precision": "fp32"} for stage in recipe["stages"]}
    found = {"data": {**own, "use": "npz", "options": {"path": str(data), **CIFAR100}}, "stages": stages}
    if short:
        for stage in recipe["stages"]:
            length = {"iterations": 3} if "iterations" in stage else {"epochs": 1}
            stages[stage["name"]] |= {**length, "schedule": {"name": "constant"}}
        methods = recipe.get("methods") or {}
        late = [name for name, entry in methods.items() if "start_epoch" in ((entry or {}).get("options") or {})]
        found["methods"] = {name: {"options": {"start_epoch": 0}} for name in late}
        found["backbone"] = {"options": {"depth": 8}}
    return found


def recipe_file(name: str, root: Path, room: Path, data: Path, short: bool) -> Path:
    """Write the recipe ``cifar100_lt_NAME`` with its `changes` below `room`."""
    from ltcore.recipe.loading import load_recipe

    path = root / "recipes" / f"cifar100_lt_{name}.yaml"
    plain = load_recipe(path).source
    about = {"extends": str(path), "name": path.stem, "description": plain.get("description", "")}
    file = room / "recipes" / path.name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(about | changes(plain, data, short), indent=1))  # JSON is YAML
    return file


def jobs_of(names: Iterable[str], seeds: Iterable[int], root: Path, room: Path, data: Path, short: bool) -> list[Job]:
    """The jobs in order of worth; their recipe files are written below `room`."""
    files = [recipe_file(name, root, room, data, short) for name in names]
    return [make_job(file, seed) for seed in seeds for file in files]


def make_job(file: Path, seed: int) -> Job:
    """The job of a recipe file and a seed."""
    from ltcore.recipe.loading import load_recipe

    loaded = load_recipe(file, seed=seed)
    recipe, first = loaded.recipe, loaded.recipe.stages[0]
    parts = [recipe.data, recipe.backbone, first, *(recipe.methods[name] for name in first.methods)]
    shared = None if recipe.select else digest_of([seed, *(part.model_dump(mode="json") for part in parts)])
    return Job(recipe.name, seed, file, loaded.source, recipe_digest(loaded.source), shared)


def pick(waiting: Sequence[Job], running: Iterable[Job], trained: Iterable[Job]) -> tuple[Job, Job | None] | None:
    """The job to start next, and the one whose first stage it takes over; None where all must wait.

    A job whose first stage is being trained by another job waits for that job.
    """
    busy = {job.first_stage for job in running}
    for job in waiting:
        source = next((t for t in trained if job.first_stage and t.first_stage == job.first_stage), None)
        if source or job.first_stage is None or job.first_stage not in busy:
            return job, source
    return None


def default_jobs(cores: int, memory_gib: float | None, device_share: float | None) -> int:
    """How many runs at once: a core each, memory for all, and no more than keep the card busy.

    Args:
        cores: of the machine; one is left to the program that starts the runs.
        memory_gib: of the card; None without a card.
        device_share: share of its time that one run keeps the card busy, where it was measured.
    """
    most = max(1, cores - 1)
    if memory_gib is not None:
        most = max(1, min(most, int(memory_gib // GIB_A_RUN)))
    return min(most, max(1, math.ceil(1 / device_share))) if device_share else most
