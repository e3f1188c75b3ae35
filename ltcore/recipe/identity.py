"""Which experiment a recipe is: its settings without what changes no result, and a digest of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from ltcore.recipe.loading import NEUTRAL, LoadedRecipe


def settings(loaded: LoadedRecipe) -> dict[str, Any]:
    """The recipe with its defaults as a flat mapping by path, without what changes no result (`NEUTRAL`)."""
    told = dict(flat(loaded.recipe.model_dump(mode="json", exclude={"published"})))
    return {key: value for key, value in told.items() if key not in NEUTRAL}


def digest(loaded: LoadedRecipe) -> str:
    """16 hexadecimal digits that two recipes share where all their settings are the same, files that they name too."""
    order = [stage.name for stage in loaded.recipe.stages]
    files = sorted((name, file.digest) for name, file in loaded.code.items())
    content = [sorted(settings(loaded).items()), order, files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of plain data by dotted path; the parts of a list of named things (stages) go by their names."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from flat(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        for item in value:
            yield from flat(item, f"{path}.{item['name']}")
    else:
        yield path, value
