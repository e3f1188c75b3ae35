"""A recipe with everything that it extends and core's defaults, and where each value comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ltcore.contract.recipe import Recipe
from ltcore.recipe.located import Located, Locator
from ltcore.recipe.merging import load_chain
from ltcore.recipe.validation import validate
from ltcore.recipe.yaml_source import dump_line

DEFAULT = "default"
#: Comments stand at this column, but for lines that are longer.
_COLUMN = 56


def annotated(path: Path) -> str:
    """The merged recipe as YAML, which is a recipe itself. Each value has the file and line that says it, or `DEFAULT`.

    Variables (``${env:NAME}``) stay as they are. Options of methods, data and backbone that nobody states are not
    shown; the last line says of whom ``ltcore plugins show NAME`` lists the defaults.

    Args:
        path: a recipe file; places are told relative to its folder.

    Raises:
        RecipeError: the recipe is wrong.
    """
    root = load_chain(path)
    assert isinstance(root.value, dict)
    root.value.setdefault("name", Located(path.stem, "the file's name"))
    checked = validate(Recipe, root.plain(), Locator(root, path)).model_dump(mode="json")
    checked["published"] = root.plain().get("published", [])  # of a figure, what was printed
    lines = _entries(root, checked)
    told = [f"{text:<{_COLUMN}}  # {_told(where, path.parent)}" if where else text for text, where in lines]
    uses = [checked[part]["use"] for part in ("data", "backbone")]
    uses += [entry["use"] or key for key, entry in checked["methods"].items()]
    return "\n".join(
        [
            *told,
            f"# Options that nobody states have the defaults that ltcore plugins show NAME lists: {', '.join(uses)}",
        ]
    )


def _entries(written: Located, value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A mapping's lines, each with the place of its value; a line that only opens a mapping or a list has none."""
    for key, child in value.items():
        node = written.get(key)
        content = node.value if node is not None else None
        if node is None:
            yield dump_line({key: child}), DEFAULT
        elif isinstance(content, dict) and content and isinstance(child, dict):
            yield dump_line({key: None}).removesuffix(" null"), ""
            yield from _indented(_entries(node, child))
        elif isinstance(content, list) and any(isinstance(item.value, dict) for item in content):
            yield dump_line({key: None}).removesuffix(" null"), ""
            for item, inner in zip(content, child, strict=True):
                yield from _item(item, inner)
        else:
            yield dump_line({key: node.plain()}), node.where


def _item(written: Located, value: Any) -> Iterator[tuple[str, str]]:
    """An entry of a list."""
    if isinstance(written.value, dict) and written.value and isinstance(value, dict):
        for number, (text, where) in enumerate(_entries(written, value)):
            yield f"  {' ' if number else '-'} {text}", where
    else:
        yield f"  - {dump_line({'item': written.plain()}).removeprefix('item: ')}", written.where


def _indented(lines: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for text, where in lines:
        yield f"  {text}", where


def _told(where: str, folder: Path) -> str:
    """A place ``FILE:LINE`` with the file relative to the recipe's folder."""
    file, colon, line = where.rpartition(":")
    return f"{os.path.relpath(file, folder)}:{line}" if colon else where
