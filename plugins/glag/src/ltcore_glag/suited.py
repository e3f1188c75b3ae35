"""What `ltcore train DIR --method glag` writes into a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ltcore import RecipeError, Suited


def suited_to(stage: Mapping[str, Any], counts: Sequence[int]) -> Suited:
    """GLAG: the stage with the gradual balanced loss, then generated features, distillation and weight scaling.

    The second stage has about 500 steps, in 4 to 40 generation epochs (40 in the paper). Head classes have more
    than 100 images, or more than the mean where that is none or all of them.

    Raises:
        RecipeError: no class has two images, so that none can be held out for the generator's confidence.
    """
    if max(counts) < 2:
        raise RecipeError("every class has a single training image; GLAG holds one per class out")
    limit = 100 if min(counts) <= 100 < max(counts) else sum(counts) // len(counts)
    second = {
        "name": "classifier",
        "epochs": min(40, max(4, 500 * 64 // sum(counts))),
        "methods": ["lws", "afg", "distillation"],
        "batch_size": 64,
        "trainable": ["classifier"],
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        "schedule": {"name": "cosine"},
        "cache": "eval",
    }
    return Suited(
        methods={
            "gra_loss": {},
            "lws": {"bias": "scale"},
            "afg": {"head_images": limit, "neighbours": min(2, len(counts) - 1)},
            "distillation": {"head_images": limit},
        },
        stages=[{**stage, "methods": ["gra_loss"]}, second],
        holdout=1,
        why="The loss is told more and more how frequent each class is. A second stage trains the classifier on "
        "features that are drawn for rare classes, while it keeps what it knew of frequent ones (GLAG).",
    )


SUITED = {"glag": suited_to, "afg": suited_to}
