"""Which recipes are trained on a GPU machine, in what form and order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltcore.recipe.loading import LoadedRecipe

#: Recipes ``cifar100_lt_NAME.yaml`` in order of worth; `cdt` selects, which is four trainings. Several seeds go through
#: the whole list one after the other.
ORDER = "ce ldam_drw balanced_softmax mixup_crt safa_ldam_drw stg glag ofa cdt mislas".split()
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


@dataclass(frozen=True)
class Asked:
    """A run that is wanted.

    Attributes:
        name: the recipe's name.
        loaded: what is trained: the recipe with the copy of its data, and a seed.
        stands_for: the recipe as it is at home; None in a rehearsal, whose short runs stand for nothing.
    """

    name: str
    loaded: LoadedRecipe
    stands_for: LoadedRecipe | None

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.loaded.recipe.seed


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
    if asked["use"] != "cifar100_lt" or asked.get("imbalance", TAIL) != TAIL or asked.get("holdout_before_cut"):
        raise ValueError(f"{recipe['name']} does not train on CIFAR-100-LT at imbalance 100, which is what travels")
    own = {key: value for key, value in asked.items() if key not in ("use", "options", "imbalance")}
    stages: dict[str, dict[str, Any]] = {stage["name"]: {"precision": "fp32"} for stage in recipe["stages"]}
    where = {"root": str(data.parent), "path": data.name, **CIFAR100}
    found = {"data": {**own, "use": "npz", "options": where}, "stages": stages}
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


def asked_of(
    names: Iterable[str], seeds: Iterable[int], root: Path, room: Path, data: Path, short: bool
) -> list[Asked]:
    """What is wanted, in order of worth; recipe files are written below `room`."""
    from ltcore.recipe.loading import load_recipe

    files = [recipe_file(name, root, room, data, short) for name in names]
    found = []
    for seed in seeds:
        for file in files:
            own = None if short else load_recipe(root / "recipes" / file.name, seed=seed)
            found.append(Asked(file.stem, load_recipe(file, seed=seed), own))
    return found


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
