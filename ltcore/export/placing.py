"""Where an export goes: what is there is looked at first, and only what an earlier export wrote is ever replaced.

Each file that `ltcore export` writes holds the name `ABOUT` where its format keeps such things. A folder holds a file
of that name, with a digest of each file that was written.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import stat
from pathlib import Path

from ltcore.errors import LtcoreError, RecipeError
from ltcore.export.formats import ABOUT
from ltcore.files.output import is_stream, output, refuse_output
from ltcore.files.reading import read_json
from ltcore.files.writing import copy_atomically, telling, write_atomically

_OTHERWISE = "or choose another place with --out"
_LAST = "config.json"


def refuse_to_replace(target: Path, folder: bool, force: bool) -> None:
    """Raise unless nothing is there, or an earlier export that may be replaced, or a pipe.

    Args:
        target: where the export shall go.
        folder: whether it is a folder.
        force: whether an earlier export may be replaced.

    Raises:
        RecipeError: something else is there.
    """
    if folder and is_stream(target):
        raise RecipeError(f"--out {target}: the format is a folder, and this is none; name a folder")
    if not (folder and target.is_dir() and not target.is_symlink()):
        refuse_output(target)
    if is_stream(target):
        return
    beside = target.with_name(f"{target.name}.data")  # of ONNX above 2 GB
    if not os.path.lexists(target) and (folder or not os.path.lexists(beside)):
        return
    ours = _holds(target, ABOUT) and (not os.path.lexists(beside) or _holds(target, beside.name))
    if not (_accepted(target) if folder else ours):
        there = target if folder or os.path.lexists(target) else beside
        raise RecipeError(f"{there} is there already and no earlier export; choose another with --out")
    if not force:
        raise RecipeError(f"{target} is there already; choose another with --out, or replace it with --force")
    if folder:
        _refuse_changes(target)


def put(made: Path, target: Path) -> None:
    """Give what was made its name.

    Args:
        made: a file or folder; a file may have others beside it, whose names begin with its own.
        target: its name.

    Raises:
        RecipeError: what is there is not what `refuse_to_replace` has seen.
        RunError: it cannot be written.
    """
    if is_stream(target):
        with output(target) as stream, open(made, "rb") as content:
            shutil.copyfileobj(content, stream)
        return
    mask = os.umask(0)
    os.umask(mask)
    for path in (made, *made.parent.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)  # safetensors writes files for their owner only
    with telling(target, _OTHERWISE):
        if not made.is_dir():
            refuse_output(target)
            for path in sorted(made.parent.iterdir(), reverse=True):  # what it refers to comes first
                path.replace(target.with_name(path.name))
        elif not os.path.lexists(target):
            made.rename(target)
        else:
            _put_into(made, target)


def write_marker(folder: Path) -> None:
    """Note in an exported folder which files were written, and their digests."""
    write_atomically(folder / ABOUT, _marker({path.name: [_digest(path)] for path in sorted(folder.iterdir())}))


def _put_into(made: Path, target: Path) -> None:
    """Replace the files of an earlier export in a folder that may hold others.

    Its configuration goes first and comes last, so that a kill leaves nothing that loads with half of the old files.
    """
    old, new = _accepted(target), _accepted(made)
    _refuse_changes(target)
    for name in new.keys() - old.keys():
        if os.path.lexists(target / name):
            raise RecipeError(f"{target / name} is there already and of no earlier export; move it away")
    # Until all is there, the files of both exports are ours.
    both = {name: [*old.get(name, ()), *new.get(name, ())] for name in old | new}
    write_atomically(target / ABOUT, _marker(both), _OTHERWISE)
    for name in (_LAST, *(old.keys() - new.keys())):
        (target / name).unlink(missing_ok=True)
    for name in (*(new.keys() - {_LAST}), _LAST, ABOUT):
        copy_atomically(made / name, target / name)


def _refuse_changes(target: Path) -> None:
    """Raise where a file of an earlier export is another now, which --force would lose."""
    for name, digests in _accepted(target).items():
        path = target / name
        if os.path.lexists(path) and (not _is_regular(path) or _digest(path) not in digests):
            raise RecipeError(f"{path} was changed since it was exported; move it away, or choose another with --out")


def _marker(digests: dict[str, list[str]]) -> bytes:
    return (json.dumps({"written by": "ltcore export", "sha256": digests}, indent=2) + "\n").encode()


def _accepted(folder: Path) -> dict[str, list[str]]:
    """The digests of each file that earlier exports wrote into a folder; empty where none did."""
    try:
        files = read_json(folder / ABOUT)["sha256"]
        if all(os.path.basename(name) == name not in ("", ".", "..") for name in files):
            return {name: list(digests) for name, digests in files.items()}
    except (LtcoreError, KeyError, TypeError, AttributeError):
        pass
    return {}


def _holds(path: Path, text: str) -> bool:
    """Whether a regular file holds a text."""
    if not _is_regular(path) or not path.stat().st_size:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text.encode()) >= 0


def _is_regular(path: Path) -> bool:
    return os.path.lexists(path) and stat.S_ISREG(os.lstat(path).st_mode)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
