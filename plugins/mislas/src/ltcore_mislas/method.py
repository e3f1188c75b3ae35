"""The method `label_aware_smoothing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from ltcore import Context, Method, Options, Suited, hookimpl
from ltcore_mislas.functional import label_aware_smoothing_loss, smoothing_factors


class LabelAwareSmoothingOptions(Options):
    """Options of label-aware smoothing."""

    head: float = Field(default=0.4, ge=0.0, lt=1.0)
    """Smoothing of the largest class."""
    tail: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Smoothing of the smallest class."""
    form: Literal["concave", "linear", "convex"] = "concave"
    """How the smoothing goes from the one to the other with the number of images."""
    spread: Literal["others", "all"] = "others"
    """Which classes get the mass that a label gives away: the others, as printed, or all, as in the authors' code."""


class LabelAwareSmoothing(Method[LabelAwareSmoothingOptions]):
    """Label smoothing that grows with the class's number of images (MiSLAS), see `label_aware_smoothing_loss`."""

    interface = "1.0"
    factors: Tensor

    @classmethod
    def suited_to(cls, stage: Mapping[str, Any], counts: Sequence[int]) -> Suited:
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
        smoothing = {"lws": {"weights": "train", "bias": "scale"}, "label_aware_smoothing": {"spread": "all"}}
        return Suited(
            methods=({"mixup": {}} if trains else {}) | smoothing,
            stages=[{**stage, "methods": ["mixup"] if trains else []}, second],
            why="A second stage trains the classifier on batches in which every class is as frequent, with labels that "
            "are softer the more frequent their class is (MiSLAS).",
        )

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Work out each class's smoothing, [C]."""
        options = self.options
        self.register_buffer(
            "factors", smoothing_factors(context.class_counts, options.head, options.tail, options.form)
        )

    @hookimpl
    def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Smoothed cross-entropy a sample, [N], from logits [N, C] and targets [N]."""
        if not (self.options.head or self.options.tail):
            return cross_entropy(logits, targets, reduction="none")
        return label_aware_smoothing_loss(logits, targets, self.factors, self.options.spread)
