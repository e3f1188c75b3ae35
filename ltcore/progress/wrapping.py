"""Lines that a terminal would cut inside words, broken between them."""

from __future__ import annotations

import os
import re
from typing import TextIO

#: What stands before a line's text, which the lines that follow leave blank: ``note       ``, or spaces.
_LEAD = re.compile(r"\s*(?:\S+(?: \S+)*?  +)?")
#: A command to be copied: it stays in one piece, which a terminal gives back as one line.
_COMMAND = re.compile(r"(?:^|  |: |with )(?:ltcore|python|pip|torchrun) \S")
#: Fewer columns than these are not written for.
_NARROWEST = 40


def wrapped(text: str, width: int) -> str:
    """Text whose lines have at most so many columns, as far as their words do.

    Args:
        text: lines, without control characters.
        width: columns.

    Returns:
        The same words. What goes on stands below the text that it goes on from, behind the same lead.
    """
    return "\n".join(part for line in text.split("\n") for part in _broken(line, width))


def for_terminal(text: str, stream: TextIO) -> str:
    """Text as it is; on a terminal, wrapped to its columns."""
    if not stream.isatty():
        return text
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # a terminal that does not say
        width = 80
    return wrapped(text, max(width or 80, _NARROWEST))


def _columns(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _broken(line: str, width: int) -> list[str]:
    if _columns(line) <= width or _COMMAND.search(line):
        return [line]
    found = _LEAD.match(line)
    lead = found[0] if found else ""
    indent = _columns(lead)
    if indent > width // 2:  # a row of a table, rather than a name and a text
        lead = line[: len(line) - len(line.lstrip())]
        indent = min(len(lead) + 2, width // 2)
    first, *words = re.split(r"(?<=\S) (?=\S)", line[len(lead) :])
    lines, current = list[str](), lead + first
    for word in words:
        if _columns(f"{current} {word}") <= width:
            current = f"{current} {word}"
        else:
            lines.append(current)
            current = " " * indent + word
    return [*lines, current]
