"""Recipes and documentation that come with ltcore, installed or in a clone."""

from __future__ import annotations

from pathlib import Path

from ltcore.errors import RunError


def folder(name: str) -> Path:
    """The folder of ``recipes`` or ``docs``.

    Raises:
        RunError: this installation was made without them.
    """
    here = Path(__file__).parent
    for found in (here / "files" / name, here.parents[1] / name):
        if found.is_dir():
            return found
    raise RunError(f"{here / 'files' / name}: no such folder; this installation of ltcore is incomplete: reinstall it")
