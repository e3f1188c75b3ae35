"""Faults of the surroundings that no other place has put into words: they are nobody's mistake to report."""

from __future__ import annotations

import re

from ltcore.errors import fault, no_room
from ltcore.untrusted import printable

#: What torch and numpy say where memory has run out.
_NO_MEMORY = re.compile(r"out of memory|not enough memory|can.t allocate memory|unable to allocate|alloc_cpu", re.I)


def said(error: BaseException) -> str | None:
    """What has gone wrong around us and what to do; None where it is a mistake of ours."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if found := _of_one(cause):
            return found
        cause = cause.__cause__ or cause.__context__
    return None


def _of_one(error: BaseException) -> str | None:
    text = next(iter(str(error).splitlines()), "")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY.search(text):
        return f"no memory is left ({text or 'MemoryError'}); lower batch_size or eval_batch_size, or free some"
    if isinstance(error, OSError):
        places = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{': '.join([*places[:1], fault(error)])}; a run goes on with --resume"
    if no_room(error):
        return f"no room is left ({text}); free some on the disk, or in /dev/shm; a run goes on with --resume"
    if isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":
        name = printable(error.object[error.start : error.end])
        return f"the locale's encoding, {error.encoding}, has no '{name}', as in a file's name; set PYTHONUTF8=1"
    if isinstance(error, ValueError) and "null byte" in text:
        return f"a path holds the character NUL ({text}); look at the recipe and at the lists that it names"
    return None
