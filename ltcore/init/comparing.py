"""Methods that were trained on a person's own images, compared on the images that were held out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ltcore.contract.figures import FIGURES, FigureName
from ltcore.untrusted import printable

_TESTED: tuple[FigureName, ...] = ("balanced_accuracy", "many", "medium", "few", "top1")


@dataclass(frozen=True)
class Compared:
    """The runs of a method, one for each seed.

    Attributes:
        runs: their directories.
        seconds: what they took together.
    """

    runs: list[Path]
    seconds: float

    def results(self) -> list[dict[str, Any]]:
        """Their results."""
        return [json.loads((run / "result.json").read_text()) for run in self.runs]

    @property
    def held_out(self) -> list[float]:
        """Balanced accuracy on the held-out images when the last stage ended, of each seed."""
        return [result["stages"][-1]["validation"]["balanced_accuracy"] for result in self.results()]

    @property
    def score(self) -> float:
        """The mean over the seeds."""
        return mean(self.held_out)


def held_out_table(found: Mapping[str, Compared], left_out: Mapping[str, str], held_out: int) -> str:
    """The methods, the best on the held-out images first, with the figures on the test images beside.

    Args:
        found: the runs by method.
        left_out: by method, why it has none.
        held_out: how many images are held out.
    """
    heads = ["percent", "held out", *(FIGURES[name].short for name in _TESTED), "seconds"]
    rows = []
    for method in sorted(found, key=lambda each: -found[each].score):
        tested = [result["after_calibration"] for result in found[method].results()]
        figures = [_shown([one[name] for one in tested if one.get(name) is not None]) for name in _TESTED]
        rows.append([method, _shown(found[method].held_out), *figures, f"{found[method].seconds:.0f}"])
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = ["  ".join(_aligned(cells, widths)).rstrip() for cells in (heads, *rows)]
    lines += [f"left out  {printable(name)}: {printable(why)}" for name, why in left_out.items()]
    best = rows[0][0]
    points = 100 * _uncertain(found[best], held_out)
    lines += [
        "",
        f"'held out' is the balanced accuracy by which the best is chosen: {best}. It is of {held_out} images, and",
        f"uncertain by about {points:.0f} points: what is close to the best may be as good. The others are of the",
        "test images, by which nothing was chosen.",
    ]
    return "\n".join(lines)


def _uncertain(compared: Compared, held_out: int) -> float:
    """Half of the interval of confidence of a figure on so many held-out images, as if each class had as many."""
    import torch

    from ltcore.evaluation.intervals import mean_of

    recalls = compared.results()[0]["stages"][-1]["validation"]["per_class_accuracy"]
    known = torch.tensor([recall for recall in recalls if recall is not None])
    images = torch.full_like(known, held_out / len(known))
    low, high = mean_of(known * images, images) or (0.0, 1.0)
    return (high - low) / 2


def _shown(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{100 * mean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]
