"""A recipe's values as a tree in which every value knows where it was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Scalar: TypeAlias = str | int | float | bool | None
Key: TypeAlias = str | int


@dataclass(frozen=True)
class Located:
    """A value and its place.

    Attributes:
        value: a scalar, or a mapping or list of further located values.
        where: ``file:line`` or ``--set PATH=VALUE``. An entry of a mapping is placed where its key stands, because
            that is the line a reader looks for when the value spans several.
        folder: of a ``use`` that names a file, where the recipe is that says so (`ltcore.recipe.own_code`).
    """

    value: dict[str, Located] | list[Located] | Scalar
    where: str
    folder: Path | None = None

    def plain(self) -> Any:
        """The value without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def get(self, key: Key) -> Located | None:
        """The entry of a mapping or list; None where there is none."""
        if isinstance(self.value, dict) and isinstance(key, str):
            return self.value.get(key)
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            return self.value[key]
        return None

    @property
    def name(self) -> str | None:
        """The entry ``name`` of a mapping, by which lists of named things (stages) are addressed."""
        child = self.get("name")
        return child.value if child is not None and isinstance(child.value, str) else None


def located(value: Any, where: str) -> Located:
    """Plain data as a tree in which every value has the same place."""
    if isinstance(value, dict):
        return Located({key: located(child, where) for key, child in value.items()}, where)
    if isinstance(value, list):
        return Located([located(child, where) for child in value], where)
    return Located(value, where)


@dataclass(frozen=True)
class Locator:
    """Answers where a path's value was written, and how a message names the path."""

    root: Located
    path: Path

    def where(self, *path: Key) -> str:
        """The place of the value at `path`, or of its nearest ancestor that was written down."""
        node = self.root
        for key in path:
            child = node.get(key)
            if child is None:
                break
            node = child
        return node.where

    def shown(self, path: tuple[Key, ...]) -> str:
        """``stages.finetune.epochs`` for ``("stages", 1, "epochs")``."""
        parts = []
        node: Located | None = self.root
        for key in path:
            node = node.get(key) if node is not None else None
            name = node.name if node is not None and isinstance(key, int) else None
            parts.append(str(key) if name is None else name)
        return ".".join(parts)

    def inherited(self, *path: Key) -> bool:
        """Whether the value came from a recipe that this one extends."""
        return not self.where(*path).startswith((f"{self.path}:", "--"))


def shown_value(value: Any) -> str:
    """A value as a message shows it: ``'abc'``, ``true``, ``null``, ``3``, ``a list``, ``a mapping``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
