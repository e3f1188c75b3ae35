"""What `ltcore train DIR --method safa` writes into a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ltcore import Suited


def suited_to(stage: Mapping[str, Any], counts: Sequence[int]) -> Suited:
    """The stage with LDAM; deferred re-sampling and SAFA begin with its last fifth, as in 160 of 200 epochs.

    The tap is before the global pool, which every convolutional network has; the weight of generated rows is the
    one that was chosen on photographs. The networks are narrow, since there the maps have many channels.
    """
    late = 4 * stage["epochs"] // 5
    return Suited(
        methods={
            "ldam": {},
            "drs": {"start_epoch": late},
            "safa": {"tap": "maps", "hidden_channels": 32, "start_epoch": late, "generated_weight": 0.2},
        },
        stages=[{**stage, "methods": ["ldam", "drs", "safa"], "trainable": [*stage["trainable"], "safa"]}],
        why="Rare classes are asked for a larger margin (LDAM). In the last fifth of the epochs they are drawn "
        "more often, and features are made for them from how images of frequent classes differ (SAFA).",
    )


SUITED = {"safa": suited_to}
