"""``ltcore init``: a recipe for a person's own images, with the reason for each choice written beside it.

The folder is only read (`survey`), the choices are made from what it holds and how fast this machine is (`choices`),
and written down as a recipe with comments (`text`).
"""

from __future__ import annotations

from pathlib import Path

from ltcore.errors import RecipeError
from ltcore.files.output import refuse_output, write_output


def write_recipe(folder: Path, out: Path, force: bool, split: str = "auto", **wished: object) -> str:
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
    if out.exists() and not force:
        raise RecipeError(f"{out} is there already; choose another file with --out, or write over it with --force")
    if out.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"--out: {out} should end in .yaml, as recipes do")
    refuse_output(out)
    from ltcore.init.choices import Wishes, choose
    from ltcore.init.machine import this_machine
    from ltcore.init.survey import survey
    from ltcore.init.text import recipe_text, summary

    wishes, machine = Wishes(**wished), this_machine()  # type: ignore[arg-type]
    found = survey(folder, split)  # type: ignore[arg-type]
    made = choose(found, wishes, machine)
    write_output(out, recipe_text(found, made, wishes, machine, out))
    return summary(found, made, machine, out)
