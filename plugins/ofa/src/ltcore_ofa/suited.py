"""What `ltcore train DIR --method ofa` writes into a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ltcore import Suited


def suited_to(stage: Mapping[str, Any], counts: Sequence[int]) -> Suited:
    """The stage, then the paper's fine-tuning of the classifier, of as many steps as on our digits.

    The head holds the paper's 90 % of the images, or less where that would be every class.
    """
    ratio = min(0.9, (sum(counts) - min(counts)) / sum(counts))
    second = {
        "name": "finetune",
        "iterations": 400,
        "methods": ["ofa"],
        "batch_size": 128,
        "trainable": ["classifier"],
        "optimizer": {"name": "sgd", "lr": 0.001, "momentum": 0.9, "weight_decay": 5e-4},
        "cache": "eval",
    }
    return Suited(
        methods={"ofa": {"head_ratio": int(100 * ratio) / 100, "confusing": min(3, len(counts) - 1)}},
        stages=[{**stage, "methods": []}, second],
        why="The second stage fine-tunes the classifier on images of rare classes, and on features that are fused "
        "from theirs and those of classes that they are confused with (OFA).",
    )


SUITED = {"ofa": suited_to}
