"""What `ltcore train DIR --method stg` writes into a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ltcore import Suited


def suited_to(stage: Mapping[str, Any], counts: Sequence[int]) -> Suited:
    """Mixup where the network trains, then the generator and the classifier, of as many steps as on our digits.

    The paper does not say which classes are the head: here those with at least the mean number of images.
    """
    trains = "backbone" in stage["trainable"]
    head = sum(count * len(counts) >= sum(counts) for count in counts)
    adam = {"batch_size": 128, "optimizer": {"name": "adam", "lr": 1e-3}, "cache": "eval", "methods": ["stg"]}
    generator = {"name": "generator", "iterations": 600, "classification": False, "trainable": ["stg"]}
    classifier = {"name": "classifier", "iterations": 1000, "classifier": "rebuild", "sampler": "class_balanced"}
    return Suited(
        methods=({"mixup": {}} if trains else {}) | {"stg": {"head_fraction": round(head / len(counts), 3)}},
        stages=[
            *([{**stage, "methods": ["mixup"]}] if trains else []),
            generator | adam,
            classifier | adam | {"trainable": ["classifier"]},
        ],
        why="A generator learns from frequent classes how features vary, and the classifier is then trained on "
        "batches in which every class is as frequent, with features of rare classes that are varied so (STG).",
    )


SUITED = {"stg": suited_to}
