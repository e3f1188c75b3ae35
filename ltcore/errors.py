"""Errors that a user can cause, each one message: what, where, whose, and what to do.

The command line prints the message and ends with the class's exit code; a traceback is shown with ``--debug`` only.
"""

import errno
import os
import re
from collections.abc import Iterable
from typing import Self

from ltcore.untrusted import printable

#: Of a longer line of a message, which has quoted what somebody's file is full of, the ends are shown.
_LONGEST, _KEPT = 3_000, 1_400


class LtcoreError(Exception):
    """Base of every error whose message is meant for the user as it stands.

    The command line shows it on one line, whatever characters are in it; several arguments are several lines.

    A class of a plugin may have a constructor and attributes of its own; its message is what it hands to
    ``super().__init__``. So whoever knows more about an error adds to its message and raises the same object again::

        except LtcoreError as error:
            error.within("data: ")
            raise
    """

    exit_code = 1

    def __str__(self) -> str:
        """The message; a class that was given several lines says each of them."""
        return "\n".join(self.lines)

    @property
    def lines(self) -> list[str]:
        """The message's lines, as they are shown: of an endless one the middle is cut."""
        said = [str(line) for line in self.args]
        return [line if len(line) <= _LONGEST else f"{line[:_KEPT]} [...] {line[-_KEPT:]}" for line in said]

    def within(self, before: str = "", after: str = "") -> Self:
        """This error, its message put between `before` and `after`; all else of it stays."""
        first, *others = map(str, self.args or ("",))
        *lines, last = [before + first, *others]
        self.args = (*lines, last + after)
        return self

    def saying(self, *lines: str) -> Self:
        """This error with another message; its class, attributes, exit code and traceback stay."""
        self.args = lines
        return self


class RecipeError(LtcoreError):
    """The recipe, the command line or the combination of methods is wrong; nothing was trained. Exit code 2."""

    exit_code = 2


class DataError(LtcoreError):
    """The data is missing, unreadable or does not suit the recipe. Exit code 2."""

    exit_code = 2


class PluginError(LtcoreError):
    """A plugin is missing or fails to import (exit code 2)."""

    exit_code = 2


class RunError(LtcoreError):
    """The run itself failed: a loss that is not finite, a method that raised, no memory left. Exit code 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'focal'?"`` for the known name closest to `name`, or an empty string."""
    from difflib import get_close_matches  # here, since every start imports this file

    matches = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{printable(matches[0])}'?" if matches else ""


def listed(names: Iterable[str]) -> str:
    """Names as ``'a', 'b'``, in the given order; ``none`` where there are none."""
    return ", ".join(f"'{printable(name)}'" for name in names) or "none"


#: What to do about a fault of the surroundings, by the system's number of it.
_CURES = {
    "free some space there": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "make it writable and readable for you": (errno.EACCES, errno.EPERM, errno.EROFS),
    "it, or the folder that it is in, was moved or removed; put it back": (errno.ENOENT, errno.ENOTDIR, errno.ESTALE),
    "a link stands there; remove it": (errno.ELOOP,),
    "raise the number of files that a process may open (ulimit -n)": (errno.EMFILE, errno.ENFILE),
    "take a shorter name": (errno.ENAMETOOLONG,),
    "free some memory": (errno.ENOMEM,),
    "another process holds it; wait for that": (errno.EBUSY, errno.ETXTBSY, errno.EAGAIN, errno.ENOLCK),
}


#: What libraries say where the disk, a quota or shared memory is full.
_NO_ROOM = re.compile(r"no space left|disk quota|bus error|shared memory|unexpected pos|failed writing file", re.I)


def no_room(error: BaseException) -> bool:
    """Whether a library's error, or what has led to it, is that a disk or shared memory is full."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if _NO_ROOM.search(str(cause)):
            return True
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return False


def fault(error: OSError, otherwise: str = "") -> str:
    """What the system refuses, and what to do: ``No space left on device; free some space there, or ...``.

    Args:
        error: what the system raised.
        otherwise: what to do beside the cure, such as ``or choose another place with --out``.
    """
    cure = next((cure for cure, numbers in _CURES.items() if error.errno in numbers), "look at the disk or the drive")
    said = (os.strerror(error.errno) if error.errno else str(error)) or type(error).__name__
    return f"{printable(said)}; {cure}{', ' if otherwise else ''}{otherwise}"
