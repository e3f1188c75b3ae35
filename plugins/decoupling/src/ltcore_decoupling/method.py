"""The methods `lws` and `ncm`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from ltcore import Context, DataError, Method, Options, RecipeError, hookimpl
from ltcore_decoupling.classifiers import CosineClassifier, ScaledClassifier
from ltcore_decoupling.functional import class_mean_directions


class LWSOptions(Options):
    """Options of learnable weight scaling."""

    weights: Literal["frozen", "train"] = "frozen"
    """Whether weight and bias stay as they were trained (LWS), or go on learning as `classifier.inner` (MiSLAS)."""
    bias: Literal["scale", "keep"] = "keep"
    """Whether the bias is kept, as the formula is printed, or scaled with the weights, as in the authors' code."""


class LWS(Method[LWSOptions]):
    """Learnable weight scaling (Kang et al. 2020): the classifier of the stage before, with one scale a class.

    See `scaled_logits`. The classifier inside is frozen, so ``trainable: [classifier]`` trains the scales only. With
    ``weights: train`` it learns too, from where it stands: ``diag(s) (W + dW)`` of MiSLAS (Zhong et al. 2021). There it
    should have a rate of its own, ``optimizer: {groups: {classifier.inner: {lr: ...}}}``; MiSLAS's authors take 0.5 and
    0.2 of the scales' on CIFAR-10 and CIFAR-100, and 0.05 on large sets.
    """

    interface = "1.0"
    requires = frozenset({"earlier_stage"})

    @hookimpl
    def build_classifier(self, previous: nn.Module | None) -> nn.Module:
        """The previous classifier, with scales of 1: before the first step nothing has changed.

        Raises:
            RecipeError: there is no previous classifier.
        """
        if previous is None:
            raise RecipeError("method 'lws' scales a trained classifier; give it a stage after the one that trains it")
        return ScaledClassifier(previous, self.options.weights == "train", self.options.bias == "scale")


class NCMOptions(Options):
    """Options of the nearest class mean."""

    scale: float = Field(default=1.0, gt=0.0)
    """What the cosines are multiplied with to be logits. It changes confidences and ECE, and no prediction."""


class NCM(Method[NCMOptions]):
    """Nearest class mean on L2-normalised features (Kang et al. 2020), see `class_mean_directions`."""

    interface = "1.0"

    @hookimpl
    def post_calibrate(self, context: Context) -> nn.Module:
        """A classifier made of the training features; the trained one has no part in it.

        Raises:
            DataError: a class has no training images.
        """
        features = context.training_features().float()
        targets = context.training_targets.to(features.device)
        try:
            directions = class_mean_directions(features, targets, context.num_classes)
        except ValueError as error:
            raise DataError(f"method 'ncm': {error}") from error
        return CosineClassifier(directions, self.options.scale)
