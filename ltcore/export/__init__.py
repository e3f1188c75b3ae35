"""``ltcore export``: a run's calibrated model in a format that needs no ltcore, checked before it is there."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from ltcore.errors import LtcoreError, RecipeError, no_room
from ltcore.export import formats, hub
from ltcore.export.checking import checked_logits
from ltcore.export.deployed import about, deploy
from ltcore.export.placing import put, refuse_to_replace, write_marker
from ltcore.files.output import is_stream
from ltcore.files.writing import telling, temporary_folder

if TYPE_CHECKING:
    from ltcore.export.deployed import Deployed
    from ltcore.runs.saved import SavedRun

#: Writes a model into a path and returns how it is called once it is loaded from there.
Write = Callable[["SavedRun", "Deployed", dict[str, Any], Path], formats.Call]

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
        out: the file or pipe, or the folder for ``hub``; by default named after the recipe, in the current directory.
        force: replace what an earlier export wrote.

    Returns:
        Lines for the user: what was written and how it was checked.

    Raises:
        RecipeError: something is there already that may not be replaced, or an extra of ltcore is missing.
        RunError: the model cannot be exported so, or gives other logits than the run; then nothing is left behind.
    """
    ending, write = FORMATS[to]
    target = Path(f"{saved.recipe.name}{ending}") if out is None else out
    if to == "torch_export" and target.suffix != ending and not is_stream(target):
        raise RecipeError(f"{target}: torch.export reads files that end in {ending}; choose such a name with --out")
    refuse_to_replace(target, to == "hub", force)
    model = deploy(saved)
    parent = Path(gettempdir()) if is_stream(target) else target.absolute().parent
    with telling(target, "or choose another place with --out"), temporary_folder(parent) as folder:
        made = folder / (f"model{ending}" if is_stream(target) else target.name)
        try:
            call = write(saved, model, about(saved), made)
            if to == "hub":
                write_marker(made)
            checked = checked_logits(saved, call)
        except Exception as error:
            if no_room(error):
                raise OSError(errno.ENOSPC, "no room") from error
            if isinstance(error, LtcoreError):
                error.within(f"{to}: ", "; nothing was written")
            raise
        put(made, target)
    crops, notes = saved.description.transform.crops, []
    if crops > 1:
        notes.append(
            f"the run's figures are of {crops} crops of each image, whose logits are averaged (test_crops); the "
            "exported model gives the logits of one"
        )
    return [f"{target}: {to}, {model.told}", *checked, *notes]
