"""``ltcore export``: a run's calibrated model in a format that needs no ltcore, checked before it is there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.errors import LtcoreError, RecipeError, RunError
from ltcore.export import formats, hub
from ltcore.export.checking import checked_logits
from ltcore.export.deployed import about, deploy

if TYPE_CHECKING:
    from torch import Tensor

    from ltcore.export.deployed import Deployed
    from ltcore.runs.saved import SavedRun

#: Writes a model into a path and returns how it is called once it is loaded from there, images [N, C, H, W] to logits.
Write = Callable[["SavedRun", "Deployed", dict[str, Any], Path], "Callable[[Tensor], Tensor]"]

#: Format -> the ending of its file, or of its folder, and what writes it.
FORMATS: dict[str, tuple[str, Write]] = {
    "torchscript": (".pt", formats.write_torchscript),
    "torch_export": (".pt2", formats.write_torch_export),
    "onnx": (".onnx", formats.write_onnx),
    "safetensors": (".safetensors", formats.write_safetensors),
    "hub": ("-hub", hub.write_hub),
}


def export(saved: SavedRun, to: str, out: Path | None = None, force: bool = False) -> list[str]:
    """Export a run's model.

    What is written is loaded again, and its logits compared with the run's own; only then does it get its name.

    Args:
        saved: the run.
        to: a key of `FORMATS`.
        out: the file, or the folder for ``hub``; by default named after the recipe, in the current directory.
        force: replace what is there.

    Returns:
        Lines for the user: what was written and how it was checked.

    Raises:
        RecipeError: something is there already, or an extra of ltcore is missing.
        RunError: the model cannot be exported so, or gives other logits than the run; then nothing is left behind.
    """
    ending, write = FORMATS[to]
    target = Path(f"{saved.recipe.name}{ending}") if out is None else out
    if to == "torch_export" and target.suffix != ending:
        raise RecipeError(f"{target}: torch.export reads files that end in {ending}; choose such a name with --out")
    _refuse_to_replace(target, to == "hub", force)
    model = deploy(saved)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.absolute().parent))
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror or error}; choose another with --out") from error
    try:
        made = folder / target.name
        try:
            call = write(saved, model, about(saved), made)
            checked = checked_logits(saved, call)
        except LtcoreError as error:
            error.within(f"{to}: ", "; nothing was written")
            raise
        _put(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    classifier = "a linear classifier, calibration folded in" if model.is_linear else "the method's own classifier"
    return [f"{target}: {to}, {classifier}", *checked]


def _refuse_to_replace(target: Path, folder: bool, force: bool) -> None:
    """Raise unless nothing is there, or an earlier export that may be replaced."""
    if not target.exists():
        return
    if target.is_dir() != folder or (folder and not (target / "config.json").is_file()):
        raise RecipeError(f"{target} is there already and no earlier export; choose another with --out")
    if not force:
        raise RecipeError(f"{target} is there already; choose another with --out, or replace it with --force")


def _put(folder: Path, target: Path) -> None:
    """Give what was made its name; a model above 2 GB in ONNX has a second file beside it."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)  # safetensors writes files for their owner only
    for path in sorted(folder.iterdir()):
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target.with_name(path.name))
