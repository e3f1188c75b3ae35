"""Jobs: recipes with seeds, each addressed by what its result depends on, and the stages that several of them share.

A job's address is a digest of its recipe, its seed, the code of its methods and the fingerprint of its data. So two
cells of two tables that are the same experiment are one job, whoever asks for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ltcore.files.environment import installed_code
from ltcore.recipe.identity import digest
from ltcore.recipe.loading import LoadedRecipe


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Attributes:
        name: what people call it.
        loaded: the recipe with its seed.
        data: the fingerprint of its data in short, as ``result.json`` has it.
        after: the address of the job whose stages it takes over; None where it trains all of its own.
    """

    name: str
    loaded: LoadedRecipe
    data: Mapping[str, Any] = field(default_factory=dict)
    after: str | None = None

    @cached_property
    def digest(self) -> str:
        """That of the recipe, whatever the seed."""
        return digest(self.loaded)

    @cached_property
    def code(self) -> dict[str, str]:
        """A digest of the code of each distribution whose methods it uses."""
        return code_of(self.loaded)

    @cached_property
    def address(self) -> str:
        """16 hexadecimal digits; the same wherever the result would be."""
        recipe = self.loaded.recipe
        precision = [stage.precision for stage in recipe.stages]  # which the digest takes as fp32 where it is automatic
        content = [self.digest, recipe.seed, sorted(self.code.items()), self.data, precision]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def code_of(loaded: LoadedRecipe) -> dict[str, str]:
    """A digest of the source files of each distribution, core's apart, that offers something to a recipe.

    Core's code is not in it. A change of core that changes figures is a new version with its own tests. A sweep of
    weeks must not begin anew with each fix.

    Raises:
        PluginError: something that it names is not installed.
    """
    return installed_code(loaded.offer(use) for use in uses_of(loaded))


def uses_of(loaded: LoadedRecipe) -> list[str]:
    """All that a recipe names by a ``use``."""
    recipe = loaded.recipe
    return [recipe.data.use, recipe.backbone.use, *(entry.use or name for name, entry in recipe.methods.items())]


def with_shared(jobs: Iterable[Job]) -> list[Job]:
    """The jobs, each once, behind jobs for the first stages that several of them have in common.

    Such stages are trained once, and taken over as ``ltcore run --from`` does. Recipes with `select` share nothing.
    """
    unique: dict[str, Job] = {}
    for job in jobs:
        unique.setdefault(job.address, job)
    stories = {key: _story(job.loaded) for key, job in unique.items()}
    nexts: dict[tuple[str, ...], set[str]] = {}
    for key, story in stories.items():
        for depth in range(2, len(story) + 1):  # the first part is what all stages rest on
            nexts.setdefault(story[:depth], set()).add(story[depth] if depth < len(story) else f"end {key}")
    branches = {prefix for prefix, followers in nexts.items() if len(followers) > 1}
    found: dict[str, Job] = {}

    def add(job: Job, story: tuple[str, ...]) -> str:
        """The address of a job that has been put behind what it takes over."""
        key = job.address
        if key in found:
            return key
        after = None
        for depth in range(len(story), 1, -1):
            if story[:depth] in branches:
                first = _first_stages(job, depth - 1)
                first = unique.get(first.address, first)
                if first.address != key:
                    after = add(first, story[:depth])
                    break
        found[key] = Job(job.name, job.loaded, job.data, after)
        return key

    for key, job in unique.items():
        add(job, stories[key])
    return list(found.values())


def _first_stages(job: Job, number: int) -> Job:
    """The same with the first stages only, and what they need."""
    loaded, recipe = job.loaded, job.loaded.recipe
    used = {name for stage in recipe.stages[:number] for name in stage.methods} | set(recipe.backbone.adapt)
    changes: dict[str, Any] = {"stages": loaded.source["stages"][:number]}
    changes |= {key: None for key in ("calibrate", "unsure") if getattr(recipe, key)}
    changes |= {f"methods.{name}": None for name in recipe.methods if name not in used}
    short = loaded.changed(changes, f"the first stages of {job.name}")
    same = short.source == loaded.source
    return Job(job.name if same else f"{job.name}: first {number} stage{'s' * (number > 1)}", short, job.data)


def _story(loaded: LoadedRecipe) -> tuple[str, ...]:
    """What a run rests on, then each of its stages, as texts that are equal where `ltcore run --from` finds them so."""
    recipe = loaded.recipe
    if recipe.select is not None:
        return ()

    def methods(names: Sequence[str]) -> list[Any]:
        entries = [(name, recipe.methods[name]) for name in names]
        return [[name, loaded.told(entry.use or name), entry.options] for name, entry in entries]

    data = recipe.data.model_dump(mode="json") | {"use": loaded.told(recipe.data.use), "workers": None}
    backbone = recipe.backbone.model_dump(mode="json") | {"use": loaded.told(recipe.backbone.use)}
    parts: list[Any] = [[recipe.seed, recipe.threads, recipe.device, data, backbone, methods(recipe.backbone.adapt)]]
    parts += [[stage.model_dump(mode="json"), methods(stage.methods)] for stage in recipe.stages]
    return tuple(json.dumps(part, sort_keys=True) for part in parts)
