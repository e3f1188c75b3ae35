"""How numbers are written, and short labels for long names: cut in the middle, different where the names are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count, pairwise

MISSING = "–"  # noqa: RUF001 (a dash where a figure is missing)
_ENDS = " _-/."  # of words in a name


def percent(value: float | None) -> str:
    """A fraction in percent with one decimal."""
    return MISSING if value is None else f"{100 * value:.1f}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits."""
    return MISSING if value is None or math.isnan(value) else f"{value:.{digits}g}"


def capital(text: str) -> str:
    """A text with a capital first letter."""
    return text[:1].upper() + text[1:]


def clip(text: str, letters: int) -> str:
    """A text of no more than so many letters, cut in the middle."""
    if len(text) <= letters:
        return text
    tail = (letters - 1) // 2
    return f"{text[: letters - 1 - tail]}…{text[len(text) - tail :]}"


def shortened(names: Sequence[str], letters: int) -> list[str]:
    """Labels of no more than so many letters, 8 at least, in the order of the names.

    A long name is cut in the middle. Where names begin alike, what follows the cut is the word by which a name differs
    from those that are most like it. Two different names have different labels; where nothing else helps, by a number.
    """
    letters = max(letters, 8)
    ordered = sorted(set(names))
    # How far each name is the same as one of its neighbours in the alphabet: no other name shares more with it.
    shared = dict.fromkeys(ordered, 0)
    for one, other in pairwise(ordered):
        common = next(
            (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        shared[one], shared[other] = max(shared[one], common), common
    made = {name: name for name in ordered if len(name) <= letters}
    taken = set(made.values())
    for name in ordered:
        if name not in made:
            made[name] = next(each for each in _cuts(name, shared[name], letters) if each not in taken)
            taken.add(made[name])
    return [made[name] for name in names]


def _cuts(name: str, shared: int, letters: int) -> Iterator[str]:
    """Ways to cut a name, the best first; `shared` letters are those of another name, too."""
    room = letters // 2 - 1
    head = letters - 2 - room
    if shared >= head:
        word = max(name.rfind(end, 0, shared) + 1 for end in _ENDS)
        start = max(word if shared - word < room else shared, head + 1)
        if start + room < len(name):
            yield f"{name[:head]}…{name[start : start + room]}…"
    yield clip(name, letters)
    for number in count(2):
        yield f"{clip(name, letters - len(str(number)) - 1)}~{number}"
