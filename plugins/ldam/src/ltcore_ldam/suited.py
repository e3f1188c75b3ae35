"""What `ltcore train DIR --method ldam` writes into a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ltcore import Suited


def suited_to(stage: Mapping[str, Any], counts: Sequence[int]) -> Suited:
    """The stage with margins, and class weights in its last fifth, as in the paper's 160 of 200 epochs."""
    late = 4 * stage["epochs"] // 5
    return Suited(
        methods={"ldam": {}, "drw": {"start_epoch": late}},
        stages=[{**stage, "methods": ["ldam", "drw"]}],
        why="Rare classes are asked for a larger margin (LDAM), and in the last fifth of the epochs they weigh "
        "more (DRW).",
    )


SUITED = {"ldam": suited_to}
