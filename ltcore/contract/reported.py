"""What a method shows in the report of a run: `ltcore.Method.reported` returns these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ReportScatter:
    """Vectors that belong to classes. The report brings all of them together to two dimensions (t-SNE) and draws them.

    Attributes:
        title: what they are, in a few words.
        text: a sentence on how they were made, and what to look for.
        panels: by the name of each panel, its vectors [N, D] and their labels [N] int64. D is the same in all panels,
            and some hundred rows a panel are plenty.
    """

    title: str
    text: str
    panels: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ReportTable:
    """A small table.

    Attributes:
        title: what it holds, in a few words.
        text: a sentence on how its values were made, and what to look for.
        columns: the titles of the columns, at least one.
        rows: their cells, as many as there are columns; a number is shown with four significant digits.
    """

    title: str
    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]
