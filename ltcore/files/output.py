"""Where a command's output goes: a file, replaced whole, or a pipe, written through; nothing else is touched."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ltcore.errors import RecipeError, fault
from ltcore.files.writing import replacing, telling

#: Names of streams that the process has open already.
_OPEN = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,4})")
_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def is_stream(path: Path) -> bool:
    """Whether what is written there cannot be taken back: a pipe, ``/dev/stdout`` or another open stream."""
    if _descriptor(path) is not None:
        return True
    try:
        return stat.S_ISFIFO(os.lstat(path).st_mode)
    except OSError:
        return False


def refuse_output(path: Path, option: str = "--out") -> None:
    """Refuse, before any work is done, a place where no output can be written.

    Args:
        path: where the output shall go.
        option: how the user named it, for the message.

    Raises:
        RecipeError: it is a folder, a link, a device or a socket, or it is in no folder.
    """
    if _descriptor(path) is not None:
        return
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            what = "there is no folder" if not path.parent.exists() else "it is no folder:"
            raise RecipeError(f"{option} {path}: {what} {path.parent}; make it, or name another file") from None
        return
    except OSError as error:
        raise RecipeError(f"{option} {path}: {fault(error, 'or name another file')}") from error
    for is_kind, name in _KINDS:
        if is_kind(mode):
            target, advice = (f" to {os.readlink(path)}", "name that, or") if stat.S_ISLNK(mode) else ("", "name")
            raise RecipeError(
                f"{option} {path}: is {name}{target} and no file; {advice} another file, a pipe or /dev/stdout"
            )


@contextmanager
def output(path: Path, option: str = "--out") -> Iterator[BinaryIO]:
    """A stream to an output. A file has its name once the block has ended; an error leaves what was there.

    Args:
        path: a file, or a pipe, ``/dev/stdout`` or ``/dev/fd/N``, which are written through.
        option: how the user named it, for messages.

    Raises:
        RecipeError: it is nothing of that kind.
        RunError: it cannot be written.
    """
    refuse_output(path, option)
    otherwise = f"or choose another place with {option}"
    if not is_stream(path):
        with replacing(path, otherwise) as file:
            yield file
        return
    with telling(path, otherwise):
        number = _descriptor(path)
        if number is None:
            descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        else:
            sys.stdout.flush()  # what was printed stands before it
            descriptor = os.dup(number)
        with os.fdopen(descriptor, "wb") as file:
            yield file


def write_output(path: Path, content: str | bytes, option: str = "--out") -> None:
    """Write an output whole; text is UTF-8, and what is no character is written as an escape.

    Raises:
        RecipeError: see `output`.
        RunError: it cannot be written.
    """
    with output(path, option) as file:
        file.write(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))


def _descriptor(path: Path) -> int | None:
    """The number of the open stream that the path names."""
    found = _OPEN.fullmatch(str(path))
    return int(found[1]) if found else _STANDARD.get(str(path))
