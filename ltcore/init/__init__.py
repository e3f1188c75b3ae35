"""``ltcore init``: a recipe for a person's own images, with the reason for each choice written beside it.

The folder is only read (`survey`). The choices are made from what it holds and how fast this machine is (`choices`),
and written down as a recipe with comments (`text`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ltcore.errors import LtcoreError, RecipeError
from ltcore.files.output import refuse_output, write_output

if TYPE_CHECKING:
    from ltcore.init.choices import Choices, Wishes
    from ltcore.init.machine import Machine
    from ltcore.init.survey import Survey

ALL = "all"
#: Training images per class that are held out to compare methods on, where the images have no validation split.
HELD_OUT = 3


@dataclass(frozen=True)
class Recipes:
    """Recipes for the same images, for one method each.

    Attributes:
        written: name of the method, recipe and summary of each, written when it is asked for; the first is the one that
            `init` writes without a method, called ``init``.
        left_out: by method, why it has no recipe.
        held_out: how many images the methods are compared on.
    """

    written: Iterator[tuple[str, Path, str]]
    left_out: dict[str, str]
    held_out: int


def write_recipe(folder: Path, out: Path, force: bool, split: str = "auto", **wished: Any) -> str:
    """Write a recipe for a folder of images; returns the summary to print.

    Args:
        folder: the images, or the lists that name them.
        out: the recipe's path.
        force: whether a recipe that is there is written over.
        split: whether the folder's folders are classes (``fraction``) or splits (``folders``).
        **wished: fields of `ltcore.init.choices.Wishes`.

    Raises:
        DataError: the folder's images cannot be used.
        RecipeError: the recipe is there already or cannot be written, or the wishes cannot be met.
    """
    _refuse(out, force)
    from ltcore.init.choices import Wishes
    from ltcore.init.machine import this_machine
    from ltcore.init.survey import survey
    from ltcore.init.text import summary

    wishes = Wishes(**wished)
    if wishes.method == ALL:
        raise RecipeError(f"--method {ALL} trains a recipe for each method and compares them: ltcore train {folder}")
    found, machine = survey(folder, split), this_machine()  # type: ignore[arg-type]
    return summary(found, _write(found, wishes, machine, out), machine, out)


def write_recipes(
    folder: Path,
    out: Path,
    force: bool,
    split: str = "auto",
    say: Callable[[str], None] = lambda _: None,
    runs: int = 1,
    **wished: Any,
) -> Recipes:
    """Write `init`'s own recipe, and one for each installed method that says what suits it; all share the time.

    Each is to be trained before the next is asked for. Methods come in the order of what they need at least. Each may
    have an equal part of the time that is left just then, so that what one does not need goes to those after it. One
    whose part is too short is tried once more in the end.

    Args:
        folder: the images, or the lists that name them.
        out: the first recipe's path; the others have the method's name behind it.
        force: whether recipes that are there are written over.
        split: see `write_recipe`.
        say: tells the user which recipe is written.
        runs: how many runs of each recipe will be made; the minutes that are asked for are those of one of each.
        **wished: fields of `ltcore.init.choices.Wishes`.

    Raises:
        DataError: the folder's images cannot be used.
        RecipeError: a recipe is there already or cannot be written, or the wishes cannot be met.
    """
    from ltcore.init.choices import TooShort, Wishes, choose_for_all, least_minutes
    from ltcore.init.machine import this_machine
    from ltcore.init.methods import all_suited
    from ltcore.init.survey import survey
    from ltcore.init.text import recipe_text, summary

    paths = {name: out.with_name(f"{out.stem}_{name}{out.suffix}") for name in all_suited()}
    for path in (out, *paths.values()):
        _refuse(path, force)
    start = time.perf_counter()
    found, machine, wishes = survey(folder, split), this_machine(), Wishes(**wished)  # type: ignore[arg-type]
    wishes = replace(wishes, method=None, holdout=0 if found.images["val"] else HELD_OUT)
    left_out: dict[str, str] = {}

    def written() -> Iterator[tuple[str, Path, str]]:
        say(f"writing {out}")
        own = choose_for_all(found, wishes, machine, list(paths))
        write_output(out, recipe_text(found, own, wishes, machine, out))
        yield "init", out, summary(found, own, machine, out)
        # The same network and images for all, so that only the method differs.
        beside = replace(wishes, beside=own.rung)
        least = least_minutes(own.rung, found, beside, list(paths))
        waiting, last = sorted(paths, key=lambda name: least.get(name, 0.0)), False
        again: list[str] = []
        while waiting or again:
            if not waiting:
                waiting, again, last = again, [], True
            name = waiting.pop(0)
            left = wishes.minutes - (time.perf_counter() - start) / 60 / runs
            asked = replace(beside, method=name, minutes=left / (1 + len(waiting)))
            say(f"writing {paths[name]}")
            try:
                made = _write(found, asked, machine, paths[name])
            except LtcoreError as error:
                left_out[name] = str(error)
                if isinstance(error, TooShort) and not last:
                    again.append(name)
                continue
            left_out.pop(name, None)
            yield name, paths[name], summary(found, made, machine, paths[name])

    return Recipes(written(), left_out, found.images["val"] or HELD_OUT * len(found.counts))


def _refuse(out: Path, force: bool) -> None:
    """Refuse a path that is no recipe's, or is taken."""
    if out.exists() and not force:
        raise RecipeError(f"{out} is there already; choose another file with --out, or write over it with --force")
    if out.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"--out: {out} should end in .yaml, as recipes do")
    refuse_output(out)


def _write(found: Survey, wishes: Wishes, machine: Machine, out: Path) -> Choices:
    """Choose and write the recipe; that of a named method is rehearsed."""
    from ltcore.init.choices import choose
    from ltcore.init.text import recipe_text

    def text(made: Choices) -> str:
        return recipe_text(found, made, wishes, machine, out)

    def rehearsed(made: Choices) -> float:
        from ltcore.rehearsal.rehearsal import rehearse

        with TemporaryDirectory(prefix="ltcore-init-") as folder:
            recipe = Path(folder) / out.name
            recipe.write_text(text(made), encoding="utf-8")
            try:
                seconds: float = rehearse(recipe, steps=1)["seconds"]
            except LtcoreError as error:
                told = str(error).replace(str(recipe), out.name)
                raise RecipeError(f"--method {wishes.method}: its recipe would be refused: {told}") from error
        return seconds / 60

    made = choose(found, wishes, machine, rehearsed)
    if wishes.method and wishes.epochs:
        rehearsed(made)
    write_output(out, text(made))
    return made
