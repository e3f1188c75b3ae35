"""A file that takes long to write, and that a later process may go on with where this one was killed.

Until it is whole it is called ``NAME.unfinished``. ``NAME.unfinished.json`` beside it says what it is a part of, how
much of it is done, and how many bytes that takes. Later bytes, written after that was noted, are cut off and written
again.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from ltcore.errors import RecipeError, RunError
from ltcore.files.reading import read_json
from ltcore.files.writing import own, telling, write_atomically
from ltcore.untrusted import finite

_OTHERWISE = "or choose another place with --out"


class PartialFile:
    """A file in the making; a context manager. An error leaves what is done, if anything was noted.

    Args:
        path: what it is called once it is whole.
        about: what it is made of; another process goes on only with the same.
        resume: go on with what is there, if anything is.

    Attributes:
        file: where to write, at its end.
        noted: what was last noted of how much is done; empty at the beginning.

    Raises:
        RecipeError: what is there to go on with was made of something else.
        RunError: it cannot be written, or another process writes it.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], resume: bool) -> None:
        self.path, self._about, self._resume = path, dict(about), resume
        self._part, self._notes = (path.with_name(f"{path.name}.unfinished{end}") for end in ("", ".json"))
        self.noted: dict[str, int] = {}
        self.file: BinaryIO

    def __enter__(self) -> Self:
        with telling(self._part, _OTHERWISE):
            descriptor = own(self._part, os.O_RDWR | os.O_CREAT)
            self.file = os.fdopen(descriptor, "r+b")
        try:
            with telling(self._part, _OTHERWISE):
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise RunError(f"{self._part} is no file; move it away, {_OTHERWISE}")
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise RunError(f"{self._part}: another process is writing it") from error
                size = self._begun() if self._resume else 0
                if size == 0:
                    self._notes.unlink(missing_ok=True)
                self.file.truncate(size)
                self.file.seek(size)
        except BaseException:
            self.file.close()
            raise
        return self

    def _begun(self) -> int:
        """How many bytes there are to go on from; also takes over what was noted."""
        if not self._notes.is_file():
            return 0
        found = read_json(self._notes)
        try:
            about, size, noted = found["about"], found["size"], found["noted"]
            whole = type(size) is int and size >= 0 and all(type(value) is int for value in noted.values())
        except (KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise RunError(f"{self._notes} is damaged; begin anew, without --resume")
        if other := [key for key, value in self._about.items() if about.get(key) != value]:
            raise RecipeError(
                f"--resume: {self._part} was begun with another {', another '.join(other)}; give the same, or begin "
                "anew without --resume"
            )
        if os.fstat(self.file.fileno()).st_size < size:
            raise RunError(f"{self._part} has lost what was written; begin anew, without --resume")
        self.noted = noted
        return int(size)

    def note(self, **done: int) -> None:
        """Note how much is done; what was written until now is what a later process goes on from."""
        with telling(self._part, _OTHERWISE):
            self.file.flush()
            os.fsync(self.file.fileno())
            content = {"about": self._about, "size": self.file.tell(), "noted": done}
            write_atomically(self._notes, _json(content), _OTHERWISE)
        self.noted = done

    def finish(self) -> None:
        """Give the file its name."""
        with telling(self.path, _OTHERWISE):
            self.file.flush()
            with suppress(FileNotFoundError):
                there = os.lstat(self.path).st_mode
                if stat.S_ISREG(there):
                    os.fchmod(self.file.fileno(), stat.S_IMODE(there))
            os.fsync(self.file.fileno())
            os.replace(self._part, self.path)
            self._notes.unlink(missing_ok=True)

    def __exit__(self, *error: object) -> None:
        finished = not self._part.exists() or not os.path.samestat(os.fstat(self.file.fileno()), self._part.stat())
        if not finished and not self.noted:
            with suppress(OSError):
                self._part.unlink()
        with suppress(OSError):  # a full disk has been told of
            self.file.close()


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(finite(content)) + "\n").encode()
