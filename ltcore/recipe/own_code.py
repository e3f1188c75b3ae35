"""What a recipe names that is no distribution: ``use: ./mine.py:Mine``, a class in a file beside the recipe.

The path is relative to the recipe file that says it, whatever extends that. In the merged recipe a file goes by its
name alone, ``./mine.py:Mine``, as the run's directory keeps a copy of it beside its ``recipe.yaml``. So that recipe can
be run again, and two recipes that name the same code in two places are one recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ltcore.discovery.unpackaged import File, names_file, split
from ltcore.errors import RecipeError
from ltcore.recipe.located import Located

_FORM = (
    "write './FILE.py:CLASS' for a class in a file in or below the recipe's folder, or the name of what is installed"
)


def placed(root: Located, folder: Path) -> Located:
    """A recipe in which each ``use`` that names a file, and is not placed yet, knows the folder it is relative to."""
    return _changed(root, lambda node: node if node.folder else Located(node.value, node.where, folder.absolute()))


def gathered(root: Located) -> tuple[Located, dict[str, File]]:
    """A merged recipe in which files go by their names, and those files by what the recipe calls them.

    Raises:
        RecipeError: a ``use`` is no name and no such file, or a recipe's lies outside of its folder.
    """
    files: dict[str, File] = {}

    def named(node: Located) -> Located:
        parts = split(str(node.value))
        from_recipe = not node.where.startswith("--")
        # A variable may have made a path of what was none when the recipe was read.
        if parts is None or node.folder is None or (from_recipe and not parts[0].startswith("./")):
            raise RecipeError(f"{node.where}: '{node.value}' is no method's name; {_FORM}")
        path = node.folder / parts[0]
        if from_recipe and not path.resolve().is_relative_to(node.folder.resolve()):
            raise RecipeError(
                f"{node.where}: '{node.value}' lies outside of the recipe's folder, and a recipe runs no code from "
                f"elsewhere; {_FORM}"
            )
        name = _name(path, files)
        files.setdefault(name, File(path, name.removeprefix("./")))
        return Located(f"{name}:{parts[1]}", node.where)

    return _changed(root, named), files


def _name(path: Path, files: dict[str, File]) -> str:
    """What a file is called: ``./mine.py``, or ``./mine_2.py`` where another file is called so."""
    number, name = 1, f"./{path.name}"
    while name in files and files[name].path.resolve() != path.resolve():
        number += 1
        name = f"./{path.stem}_{number}.py"
    return name


def _changed(root: Located, change: Callable[[Located], Located]) -> Located:
    """A recipe with another node at each ``use`` that names a file, candidates of a selection included."""

    def use(node: Located) -> Located:
        return change(node) if isinstance(node.value, str) and names_file(node.value) else node

    def within(node: Located, key: str, made: Callable[[Located], Located]) -> Located:
        if not (isinstance(node.value, dict) and key in node.value):
            return node
        return Located({**node.value, key: made(node.value[key])}, node.where)

    def each(node: Located, made: Callable[[str, Located], Located]) -> Located:
        if not isinstance(node.value, dict):
            return node
        return Located({key: made(key, child) for key, child in node.value.items()}, node.where)

    def candidates(path: str, node: Located) -> Located:
        if not (path.endswith(".use") and isinstance(node.value, list)):
            return node
        return Located([use(child) for child in node.value], node.where)

    for part in ("data", "backbone"):
        root = within(root, part, lambda node: within(node, "use", use))
    root = within(root, "methods", lambda node: each(node, lambda _, entry: within(entry, "use", use)))
    return within(root, "select", lambda node: within(node, "options", lambda options: each(options, candidates)))
