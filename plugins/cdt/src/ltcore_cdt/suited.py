"""What `ltcore train DIR --method cdt` writes into a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ltcore import Suited


def suited_to(stage: Mapping[str, Any], counts: Sequence[int]) -> Suited:
    """The stage with temperatures; gamma stays the default, for a selection would train for each value."""
    return Suited(
        methods={"cdt": {"gamma": 0.2}},
        stages=[{**stage, "methods": ["cdt"]}],
        why="While it trains, the logits of a class are divided by a temperature that is higher the rarer the "
        "class is (CDT). A larger gamma favours rare classes more; `select:` chooses one on held-out images.",
    )


SUITED = {"cdt": suited_to}
