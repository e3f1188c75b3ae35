"""A sweep as it is typed: a recipe, values by path, and seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltcore.errors import RecipeError
from ltcore.recipe.loading import NEUTRAL, LoadedRecipe, load_recipe
from ltcore.recipe.yaml_source import parse


@dataclass(frozen=True)
class Combination:
    """One choice of values.

    Attributes:
        values: by path, as they are shown.
        runs: the recipe with each of the seeds.
    """

    values: Mapping[str, Any]
    runs: Sequence[LoadedRecipe]

    @property
    def name(self) -> str:
        """``gamma=0.2, lr=0.1``: the last part of each path; the recipe's name where nothing varies."""
        short = [path.rsplit(".", 1)[-1] for path in self.values]
        named = short if len(set(short)) == len(short) else list(self.values)
        texts = [f"{name}={_shown(value)}" for name, value in zip(named, self.values.values(), strict=True)]
        return ", ".join(texts) or self.runs[0].recipe.name


def combinations(recipe: Path, sets: Sequence[str], grid: Sequence[str], seeds: Sequence[int]) -> list[Combination]:
    """Every combination of the values in `grid`; the last path varies fastest.

    Args:
        recipe: the recipe file.
        sets: changes ``PATH=VALUE`` that hold for all.
        grid: ``PATH=VALUE,VALUE,...`` each, the values in YAML.
        seeds: the seeds.

    Raises:
        RecipeError: a text is wrong, or a recipe with its values is.
    """
    axes = [axis(text) for text in grid]
    paths = [path for path, _ in axes]
    for path in paths:
        refuse_neutral(path)
        if paths.count(path) > 1:
            raise RecipeError(f"--grid {path}: is given twice; write all of its values into one")
    found = []
    for values in itertools.product(*(values for _, values in axes)):
        chosen = dict(zip(paths, values, strict=True))
        changes = [*sets, *(f"{path}={_shown(value)}" for path, value in chosen.items())]
        found.append(Combination(chosen, [load_recipe(recipe, changes, seed) for seed in seeds]))
    return found


def refuse_neutral(path: str) -> None:
    """Refuse to vary what is no part of an experiment: two such runs would be one.

    Raises:
        RecipeError: the path is one of `NEUTRAL`.
    """
    if path in NEUTRAL:
        instead = "; give the seeds with --seeds" if path == "seed" else "; set it for all with --set"
        raise RecipeError(f"--grid {path}: is no setting by which runs are told apart{instead}")


def axis(text: str) -> tuple[str, list[Any]]:
    """Path and values of ``PATH=VALUE,VALUE,...``.

    Raises:
        RecipeError: it is no such text.
    """
    path, equals, values = text.partition("=")
    where = f"--grid {text}"
    if not equals or not path.strip() or not values.strip():
        raise RecipeError(f"{where}: write PATH=VALUE,VALUE,..., for example --grid stages.train.optimizer.lr=0.1,0.2")
    found = parse(f"[{values}]", lambda line: where).plain()
    if len(found) != len({repr(value) for value in found}):
        raise RecipeError(f"{where}: a value stands there twice")
    return path.strip(), found


def seeds_of(texts: Iterable[str]) -> list[int]:
    """The seeds that ``0..4``, ``0,2,7`` or ``3`` mean, in order.

    Raises:
        RecipeError: a text is no such list.
    """
    found: dict[int, None] = {}
    for text in texts:
        for part in text.split(","):
            first, dots, last = part.strip().partition("..")
            if not (first.isdecimal() and (last.isdecimal() if dots else True)):
                raise RecipeError(f"--seeds {text}: write seeds as 0..4, or 0,2,7")
            numbers = range(int(first), int(last) + 1) if dots else [int(first)]
            if not numbers:
                raise RecipeError(f"--seeds {text}: {first}..{last} holds no seed; the smaller one comes first")
            found |= dict.fromkeys(numbers)
    return list(found)


def _shown(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return value if isinstance(value, str) and parse(value, str).plain() == value else repr(value)
