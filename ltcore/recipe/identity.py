"""Which experiment a recipe is: its settings without what changes no result, and a digest of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from ltcore.recipe.loading import NEUTRAL, LoadedRecipe

_PRECISION = re.compile(r"stages\.[^.]+\.precision")
#: Keys that came later, and what each says where it says nothing: then no digest changes.
_LATER = (
    (re.compile("sync_batch_norm"), False),
    (re.compile("unsure"), None),
    (re.compile(r"stages\.[^.]+\.(validate_every|stop_after)"), None),
    (re.compile(r"stages\.[^.]+\.keep"), "last"),
    (re.compile(r"data\.transform\.test_crops"), 1),
    (re.compile(r"data\.transform\.test_margin"), None),
    (re.compile(r"stages\.[^.]+\.accumulate"), 1),
    (re.compile(r"stages\.[^.]+\.cache_precision"), "fp32"),
)
_ACCELERATE = re.compile(r"stages\.[^.]+\.accelerate")


def settings(loaded: LoadedRecipe) -> dict[str, Any]:
    """The recipe with its defaults as a flat mapping by path, without what changes no result (`NEUTRAL`)."""
    told = dict(flat(loaded.recipe.model_dump(mode="json", exclude={"published"})))
    silent = {
        key for key, value in told.items() for late, default in _LATER if late.fullmatch(key) and value == default
    }
    # Graphs replay the eager operations; compiled code has operations of its own, which round otherwise.
    silent |= {key for key, value in told.items() if _ACCELERATE.fullmatch(key) and value != "compile"}
    return {key: value for key, value in told.items() if key not in NEUTRAL and key not in silent}


def digest(loaded: LoadedRecipe) -> str:
    """16 hexadecimal digits that two recipes share where all their settings are the same, files that they name too.

    A stage's precision `auto` counts as the fp32 that published figures were measured in, and that it is on a CPU. Who
    compares runs of a GPU by this digest trains them in fp32 (`in_fp32`).
    """
    order = [stage.name for stage in loaded.recipe.stages]
    files = sorted((name, file.digest) for name, file in loaded.code.items())
    told = {
        key: "fp32" if value == "auto" and _PRECISION.fullmatch(key) else value
        for key, value in settings(loaded).items()
    }
    content = [sorted(told.items()), order, files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def in_fp32(loaded: LoadedRecipe) -> LoadedRecipe:
    """The recipe with the precision of published figures where it leaves that to the device."""
    automatic = [stage.name for stage in loaded.recipe.stages if stage.precision == "auto"]
    changes = {f"stages.{name}.precision": "fp32" for name in automatic}
    return loaded.changed(changes, "a table's figures are measured in fp32") if changes else loaded


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
