"""Files written whole or not at all, and never through a link.

Of several processes that train together only the first writes; the others go through the same code, and leave nothing.

A file is written under a random name that nobody can have put a link at, flushed to disk, and renamed. So whoever reads
it, or kills us, sees the old content or the new. A kill leaves the file of the random name behind; its lock is free
then, and whoever writes next in that folder removes it.
"""

from __future__ import annotations

import fcntl
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from ltcore import ranks
from ltcore.errors import RunError, fault

_PREFIX, _SUFFIX = ".ltcore-", ".tmp"
RESUME = "then go on with --resume"
_flushed: ContextVar[bool] = ContextVar("flushed", default=True)


@contextmanager
def unflushed() -> Iterator[None]:
    """In the block nothing is flushed to disk: for files that nobody reads once this process has ended."""
    token = _flushed.set(False)
    try:
        yield
    finally:
        _flushed.reset(token)


@contextmanager
def telling(path: Path, otherwise: str = RESUME) -> Iterator[None]:
    """One message of what the system refuses in the block.

    Args:
        path: what is written there.
        otherwise: what to do beside the cure.

    Raises:
        RunError: the system refused.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read has seen enough
    except OSError as error:
        raise RunError(f"{path} cannot be written: {fault(error, otherwise)}") from error


@contextmanager
def replacing(path: Path, otherwise: str = RESUME) -> Iterator[BinaryIO]:
    """A stream whose content gets the name `path` once the block has ended; an error leaves what was there.

    Raises:
        RunError: it cannot be written.
    """
    if not ranks.leading():
        yield io.BytesIO()
        return
    with telling(path, otherwise), opened(path) as file:
        try:
            yield file
            file.flush()
            with suppress(FileNotFoundError):
                there = os.lstat(path).st_mode
                if stat.S_ISREG(there):
                    os.fchmod(file.fileno(), stat.S_IMODE(there))
            if _flushed.get():
                os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise


def write_atomically(path: Path, content: bytes, otherwise: str = RESUME) -> None:
    """Replace a file in one step.

    Raises:
        RunError: it cannot be written.
    """
    with replacing(path, otherwise) as file:
        file.write(content)


def copy_atomically(source: Path, path: Path) -> None:
    """Copy a file's content in one step.

    Raises:
        RunError: it cannot be written.
    """
    with open(source, "rb") as content, replacing(path) as file:
        shutil.copyfileobj(content, file)


def append(path: Path, text: str) -> int:
    """Add text to a file's end, in UTF-8; returns the file's size.

    Raises:
        RunError: it cannot be written, or is a link.
    """
    if not ranks.leading():
        return 0
    with telling(path), opened_at_end(path) as file:
        file.write(text.encode())
        file.flush()
        return file.tell()


def own(path: Path | str, flags: int) -> int:
    """The descriptor of a file of ours.

    Raises:
        OSError: it is a link, or the system refuses.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def opened(path: Path) -> BinaryIO:
    """A new file beside `path`, under a random name, locked, for this process only."""
    sweep(path.parent)
    while True:
        file = open(_name(path.parent), "xb", opener=own)
        if _is_ours(file.fileno()):
            return file
        file.close()


def opened_at_end(path: Path) -> BinaryIO:
    """A file to which something is added."""
    return open(path, "ab", opener=own)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder in `parent` for what gets its name there later; removed with the block, or by who writes there next.

    Raises:
        OSError: it cannot be made.
    """
    sweep(parent)
    while True:
        path = _name(parent)
        path.mkdir(mode=0o700)
        descriptor = own(path, os.O_RDONLY | os.O_DIRECTORY)
        if _is_ours(descriptor):
            break
        os.close(descriptor)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder: temporary files and folders whose lock is free."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):
            descriptor = own(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(descriptor)


def _name(folder: Path) -> Path:
    return folder / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"


def _is_ours(descriptor: int) -> bool:
    """Lock a new file or folder; False where another process swept it away before it was locked."""
    with suppress(OSError):  # some network drives lock nothing; then nobody sweeps there either
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return os.fstat(descriptor).st_nlink > 0
