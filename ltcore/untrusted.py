"""What comes from strangers: text that is shown, cells of a table, and JSON.

Names of classes, paths, recipes and results may be anybody's. They are shown so that they cannot speak to the terminal
or to a spreadsheet. JSON is read so that what is no plain value is a `ValueError` with the reason.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

#: Control characters, line breaks of every kind, what turns the direction of writing, and halves of surrogate pairs,
#: by which Python keeps bytes of a path that are no text.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
#: What a spreadsheet takes for the beginning of a formula, unless a number follows or nothing.
_FORMULA = re.compile(r"[=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MOST_DIGITS = 19  # of a whole number that 64 bits hold


def printable(text: object) -> str:
    r"""Text on one line that a terminal shows as it stands: ``\x1b`` and ``\n`` in place of what would act on it."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


def cell(text: str) -> str:
    """A cell of a CSV file that no spreadsheet takes for a formula; a ``'`` goes before what would be one."""
    harmless = len(text) < 2 or not _FORMULA.match(text) or _NUMBER.fullmatch(text)
    return text if harmless else f"'{text}"


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, nests too deeply, or holds what no value of ours is. These are  ``NaN`` and
            ``Infinity``, numbers beyond 64 bits, the character NUL.
    """
    if "\0" in text or "\\u0000" in text:
        raise ValueError("it holds the character NUL")
    try:
        return json.loads(text, parse_constant=_refuse, parse_int=_whole, parse_float=_finite)
    except RecursionError:
        raise ValueError("its lists or objects nest too deeply") from None


def finite(value: Any) -> Any:
    """Plain data as JSON can hold it: null in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > _MOST_DIGITS:
        raise ValueError(f"the number {digits[:8]}... is absurdly large")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:20]} is absurdly large")
    return number
