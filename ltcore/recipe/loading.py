"""From a recipe file to a checked `Recipe` that still knows where each of its values was written."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from ltcore.contract.recipe import Recipe
from ltcore.discovery import catalogue
from ltcore.discovery.offer import Offer
from ltcore.discovery.unpackaged import File, split
from ltcore.errors import PluginError, RecipeError
from ltcore.recipe.located import Key, Located, Locator, located
from ltcore.recipe.merging import apply_set, interpolate, load_chain, put
from ltcore.recipe.own_code import gathered, placed
from ltcore.recipe.validation import validate

#: Paths of a recipe that change no result beyond what another machine changes: no part of what an experiment is.
NEUTRAL = frozenset(
    {
        "name",
        "description",
        "published",
        "seed",
        "device",
        "threads",
        "diagnostics",
        "checkpoint_seconds",
        "eval_batch_size",
        "data.workers",
        "data.options.root",
    }
)

#: Changes that leave published figures true, whatever the recipe says: they were measured in fp32, and what is
#: accelerated is compared with what is not.
_PUBLISHED_PRECISION = re.compile(r"stages\.[^.=]+\.(precision\s*=\s*fp32|accelerate\s*=.*)")

OptionsT = TypeVar("OptionsT", bound=BaseModel)


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe and its sources.

    Attributes:
        recipe: the checked recipe.
        source: the same as plain data, merged and interpolated but without defaults; `dump_yaml` of it is the
            ``recipe.yaml`` in the run directory.
        path: the recipe file, as the user gave it.
        locator: where each value was written.
        code: the files that it names in place of what is installed, by what it calls them (``./mine.py``).
        runs_code: whether they may be run. A run that is only opened may be somebody else's.
    """

    recipe: Recipe
    source: dict[str, Any]
    path: Path
    locator: Locator
    code: Mapping[str, File] = field(default_factory=dict)
    runs_code: bool = True

    def offer(self, use: str) -> Offer:
        """What a ``use`` of this recipe names: something installed, or a class in one of its files.

        Raises:
            PluginError: it is not installed, or the file cannot be read or may not be run.
        """
        parts = split(use)
        if not (parts and parts[0] in self.code):
            return catalogue.find(use)
        file = self.code[parts[0]]
        if not self.runs_code:
            raise PluginError(
                f"'{use}' is code that the run keeps in its directory, {file.path}, and a run that is opened runs such "
                "code only where you say so: read it, then add --run-code (in Python: ltcore.load(RUN, run_code=True))"
            )
        return file.offer(parts[1], use)

    def told(self, use: str) -> str:
        """What a ``use`` is, also for another recipe: the name of what is installed; of a file what it holds.

        Raises:
            PluginError: the file cannot be read.
        """
        parts = split(use)
        return f"{self.code[parts[0]].digest}:{parts[1]}" if parts and parts[0] in self.code else use

    def where(self, *path: Key) -> str:
        """``file:line`` or ``--set ...`` of the value at `path`, or of its nearest ancestor that was written down."""
        return self.locator.where(*path)

    def shown(self, path: tuple[Key, ...]) -> str:
        """How a message names a path: ``stages.finetune.epochs`` for ``("stages", 1, "epochs")``."""
        return self.locator.shown(path)

    def fail(self, path: tuple[Key, ...], message: str) -> RecipeError:
        """An error to raise about the value at `path`; the message follows the place."""
        return RecipeError(f"{self.where(*path)}: {message}")

    def changed(self, changes: Mapping[str, Any], where: str) -> LoadedRecipe:
        """This recipe with other values at some paths (``methods.cdt.options.gamma``); None removes what is there.

        Args:
            changes: values by path.
            where: what messages say about the place of these values.

        Raises:
            RecipeError: a path does not exist, or the recipe with the values is wrong.
        """
        root = copy.deepcopy(self.locator.root)
        for path, value in changes.items():
            put(root, path.split("."), located(value, where), Recipe.model_fields)
        locator = Locator(root, self.path)
        source = root.plain()
        return LoadedRecipe(validate(Recipe, source, locator), source, self.path, locator, self.code, self.runs_code)

    def without_weights(self) -> tuple[LoadedRecipe, list[str]]:
        """The recipe with nothing that starts from weights of others, and the paths of the options that asked for some.

        These are the backbone's `pretrained` and `weights`, and each method's `pretrained`.
        """
        asked = []
        for names, path in [
            (("pretrained", "weights"), ("backbone",)),
            *((("pretrained",), ("methods", key)) for key in self.recipe.methods),
        ]:
            part: Any = self.source
            for key in (*path, "options"):
                part = (part or {}).get(key)
            asked += [".".join((*path, "options", name)) for name in names if (part or {}).get(name)]
        if not asked:
            return self, []
        return self.changed(dict.fromkeys(asked), self.where("backbone", "options")), asked

    def validate_options(self, options_class: type[OptionsT], path: tuple[Key, ...], whose: str) -> OptionsT:
        """The options at `path`, checked; where nothing stands there, the defaults.

        Args:
            options_class: what the method, backbone or data set accepts.
            path: where the options stand, such as ``("methods", "ldam", "options")``.
            whose: shown after each message, such as ``method 'ldam', ltcore-ldam 0.1.0``.

        Raises:
            RecipeError: one line for each problem.
        """
        node: Located | None = self.locator.root
        for key in path:
            node = node.get(key) if node is not None else None
        return validate(options_class, {} if node is None else node.plain(), self.locator, path, whose)


def recipe_from(parts: dict[str, Any], where: str) -> LoadedRecipe:
    """A recipe that is not in a file.

    Args:
        parts: the recipe as plain data.
        where: what messages say in place of ``file:line``.

    Raises:
        RecipeError: the recipe is wrong.
    """
    locator = Locator(located(parts, where), Path(where))
    return LoadedRecipe(validate(Recipe, parts, locator), parts, locator.path, locator)


def load_recipe(
    path: Path | str,
    sets: Sequence[str] = (),
    seed: int | None = None,
    threads: int | None = None,
    runs_code: bool = True,
) -> LoadedRecipe:
    """Read, merge, interpolate and check a recipe.

    Args:
        path: the recipe file; messages show it as it is given.
        sets: changes ``PATH=VALUE`` from the command line, applied in order.
        seed: overrides the recipe's seed.
        threads: overrides the recipe's number of threads.
        runs_code: whether files that it names may be run.

    Raises:
        RecipeError: the recipe or a change is wrong; the message begins with ``file:line:`` or ``--set ...:``.
    """
    path = Path(path)
    return recipe_of(load_chain(path), path, [(text, None) for text in sets], seed, threads, runs_code)


def recipe_of(
    merged: Located,
    path: Path,
    sets: Sequence[tuple[str, str | None]] = (),
    seed: int | None = None,
    threads: int | None = None,
    runs_code: bool = True,
) -> LoadedRecipe:
    """What `load_recipe` does behind the reading of the files.

    Args:
        merged: the recipe and what it extends, merged; it is changed.
        path: the recipe file.
        sets: changes as of ``--set``, each with its place; None for the command line.
        seed: overrides the recipe's seed.
        threads: overrides the recipe's number of threads.
        runs_code: whether files that it names may be run.

    Raises:
        RecipeError: the recipe or a change is wrong.
    """
    assert isinstance(merged.value, dict)
    fields = Recipe.model_fields
    merged.value.setdefault("name", Located(path.stem, merged.where))
    for text, place in sets:
        apply_set(merged, text, fields, place)
    for name, value in (("seed", seed), ("threads", threads)):
        if value is not None:
            merged.value[name] = Located(value, f"--{name} {value}")

    # The recipe in the run directory reads in one order, whichever file a key came from.
    entries = {key: merged.value[key] for key in (*fields, *merged.value) if key in merged.value}
    merged = Located(entries, merged.where)
    root, code = gathered(interpolate(placed(merged, Path.cwd()), Locator(merged, path)))
    locator = Locator(root, path)
    source = locator.root.plain()
    loaded = LoadedRecipe(validate(Recipe, source, locator), source, path, locator, code, runs_code)
    texts = [text.strip() for text, _ in sets]
    changed = {text.partition("=")[0].strip() for text in texts if not _PUBLISHED_PRECISION.fullmatch(text)}
    kept = _still_published(loaded.recipe, changed)
    return (
        loaded if len(kept) == len(loaded.recipe.published) else loaded.changed({"published": kept or None}, str(path))
    )


def _still_published(recipe: Recipe, changed: set[str]) -> list[dict[str, Any]]:
    """The published figures that ``--set`` of these paths leaves true: those whose `when` speaks of each of them."""
    changed = changed - NEUTRAL
    return [figure.model_dump(exclude_unset=True) for figure in recipe.published if changed <= set(figure.when)]
