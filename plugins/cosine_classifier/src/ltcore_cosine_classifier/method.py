"""The method `cosine_classifier`."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from ltcore import Context, Method, Options, hookimpl
from ltcore_cosine_classifier.classifier import CosineClassifier


class CosineOptions(Options):
    """Options of the cosine classifier."""

    scale: float = Field(default=25.0, gt=0.0)
    """What the cosines are multiplied with to give logits."""
    init: Literal["class_mean", "random"] = "class_mean"
    """Where the directions begin: at the mean training features of the classes, or anywhere."""
    learn_scale: bool = False
    """Whether the scale is trained, too (Gidaris and Komodakis 2018)."""


class Cosine(Method[CosineOptions]):
    """A classifier of scaled cosines, from the class means on (LIFT, Shi et al. 2024), see `CosineClassifier`."""

    interface = "1.1"
    provides = frozenset({"cosine_classifier"})

    @hookimpl
    def build_classifier(self, feature_dim: int, num_classes: int, context: Context) -> nn.Module:
        """A new classifier; for class means, all training images go through the network once."""
        if self.options.init == "class_mean":
            directions = context.class_means()
        else:
            directions = torch.randn(num_classes, feature_dim)
        return CosineClassifier(directions, self.options.scale, self.options.learn_scale)
