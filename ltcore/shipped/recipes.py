"""The recipes that come with ltcore: what there is, and copies of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ltcore.contract.recipe import Published, Recipe
from ltcore.discovery import catalogue
from ltcore.errors import RecipeError, fault, nearest
from ltcore.files.output import refuse_output, write_output
from ltcore.listing.plugins import aligned
from ltcore.recipe.identity import flat
from ltcore.recipe.loading import load_recipe
from ltcore.recipe.yaml_source import read_recipe_file
from ltcore.shipped import folder

_CANNOT = "or name another folder"


def recipe_rows() -> list[dict[str, Any]]:
    """One row for each recipe: its name, description, data set, and those published figures that hold as it stands."""
    rows = []
    for path in sorted(folder("recipes").glob("*.yaml")):
        recipe = load_recipe(path).recipe
        rows.append(
            {
                "name": path.stem,
                "description": recipe.description,
                "data": recipe.data.use,
                "published": [{"source": figure.source, **figure.figures()} for figure in _of_this_recipe(recipe)],
            }
        )
    return rows


def _of_this_recipe(recipe: Recipe) -> Iterator[Published]:
    """The published figures without those of other settings, such as another imbalance."""
    settings = dict(flat(recipe.model_dump(mode="json")))
    for figure in recipe.published:
        if all(settings.get(path) == value for path, value in figure.when.items()):
            yield figure


def render_recipes(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text; of several papers' figures the first."""
    table = [("NAME", "DATA", "PUBLISHED TOP-1", "DESCRIPTION")]
    for row in rows:
        figure = next(iter(row["published"]), None)
        shown = f"{figure['top1']} ({figure['source']})" if figure else ""
        table.append((row["name"], row["data"], shown, row["description"]))
    return aligned(table)


def recipe_named(name: str) -> Path:
    """The file of a recipe that comes with ltcore.

    Raises:
        RecipeError: there is none of that name; the message names the nearest.
    """
    known = {path.stem: path for path in folder("recipes").glob("*.yaml")}
    found = known.get(name.removesuffix(".yaml"))
    if found is None:
        near = nearest(name.removesuffix(".yaml"), known)
        raise RecipeError(f"no recipe '{name}' comes with ltcore{near or '.'} 'ltcore recipes list' shows all")
    return found


def copy_recipe(name: str, to: Path, force: bool = False) -> tuple[list[Path], list[str]]:
    """Write a recipe and all that it extends into a folder, which is made; a copy that is there already stays.

    Args:
        name: the recipe's name.
        to: the folder. What the recipe extends lies beside or below it, as its ``extends`` says.
        force: whether files that are there and differ are written over.

    Returns:
        The files of the copy, the recipe first; and the distributions that it needs and that are not installed.

    Raises:
        RecipeError: there is no such recipe, or another file is where one of the copy should be.
        RunError: a file cannot be written.
    """
    recipe = recipe_named(name)
    contents = {to / os.path.relpath(path, recipe.parent): path.read_bytes() for path in _with_parents(recipe)}
    missing = {path: content for path, content in contents.items() if not _is_there(path, content)}
    for path in missing:
        if path.exists() and not force:
            raise RecipeError(f"{path}: is there already, and is another file; add --force to write over it, {_CANNOT}")
    for path, content in missing.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"{path.parent}: {fault(error, _CANNOT)}") from error
        refuse_output(path, "copy to")
        write_output(path, content, "copy to")
    return list(contents), _not_installed(load_recipe(recipe).recipe)


def _with_parents(path: Path) -> Iterator[Path]:
    """A recipe's file, and those that it extends."""
    yield path
    extends = read_recipe_file(path).get("extends")
    if extends is not None:
        yield from _with_parents(path.parent / str(extends.value))


def _is_there(path: Path, content: bytes) -> bool:
    try:
        return path.is_file() and path.read_bytes() == content
    except OSError:
        return False


def _not_installed(recipe: Recipe) -> list[str]:
    installed = {offer.name for offer in catalogue.offers()}
    used = [recipe.data.use, recipe.backbone.use, *(entry.use or key for key, entry in recipe.methods.items())]
    return sorted({catalogue.taken_by(use) or use for use in used if use not in installed})
