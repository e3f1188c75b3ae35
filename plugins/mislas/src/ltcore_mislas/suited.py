"""What `ltcore train DIR --method mislas` writes into a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ltcore import Suited


def suited_to(stage: Mapping[str, Any], counts: Sequence[int]) -> Suited:
    """MiSLAS: mixup where the network trains, then its ten epochs on balanced batches with scaled weights.

    The rates are a tenth of the paper's on CIFAR, at which features of large pre-trained networks diverge.
    """
    trains = "backbone" in stage["trainable"]
    second = {
        "name": "classifier",
        "epochs": 10,
        "batch_size": 128,
        "methods": ["lws", "label_aware_smoothing"],
        "sampler": "class_balanced",
        "trainable": ["classifier"],
        "optimizer": {
            "name": "sgd",
            "lr": 0.01,
            "momentum": 0.9,
            "weight_decay": 2e-4,
            "groups": {"classifier.inner": {"lr": 0.002}},
        },
        "schedule": {"name": "cosine"},
    } | ({"batch_norm": "adapt"} if trains else {"cache": "eval"})
    mixing: dict[str, Any] = {"mixup": {}} if trains else {}
    smoothing = {"lws": {"weights": "train", "bias": "scale"}, "label_aware_smoothing": {"spread": "all"}}
    return Suited(
        methods=mixing | smoothing,
        stages=[{**stage, "methods": ["mixup"] if trains else []}, second],
        why="A second stage trains the classifier on batches in which every class is as frequent, with labels that "
        "are softer the more frequent their class is (MiSLAS).",
    )


SUITED = {"mislas": suited_to, "label_aware_smoothing": suited_to}
