"""The method `linear_probe`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ltcore import Context, Method, Options, RunError, hookimpl
from ltcore_probe.functional import Balance, Fit, fit, fit_selected, held_apart


class LinearProbeOptions(Options):
    """Options of the linear probe."""

    balance: Balance = "logit_adjusted"
    """How rare classes count: ``none``, ``class_balanced`` (each class as much as any other), ``logit_adjusted``."""
    l2: Annotated[float, Field(gt=0.0)] | Literal["selected"] = "selected"
    """The penalty of the weights, above 0, on standardised features; ``selected``: out of 1 to 0.00001 the one with the
    smallest log loss, every class counted alike, on the validation images, or where there are none on one training
    image in five."""


class LinearProbe(Method[LinearProbeOptions]):
    """Logistic regression on the backbone's features without augmentation, see `fit`.

    In a stage it makes the classifier that the stage begins with: training may go on from there. Under ``calibrate`` it
    takes the place of the trained classifier.
    """

    interface = "1.0"
    checked_with: ClassVar = {"l2": 1.0}  # of a few images on random features a weaker fit is mostly rounding

    @property
    def balances(self) -> bool:
        """Unless it is asked not to."""
        return self.options.balance != "none"

    @hookimpl
    def build_classifier(self, context: Context) -> nn.Module:
        """A linear layer that fits the training features."""
        found = self._fitted(context)
        classifier = nn.Linear(found.weight.shape[1], context.num_classes, device=found.weight.device)
        with torch.no_grad():
            classifier.weight.copy_(found.weight)
            classifier.bias.copy_(found.bias)
        return classifier

    @hookimpl
    def post_calibrate(self, context: Context) -> nn.Module:
        """A linear layer that fits the training features; the trained one has no part in it."""
        return self.build_classifier(context)

    def _fitted(self, context: Context) -> Fit:
        options, classes = self.options, context.num_classes
        features = context.training_features().float()
        targets = context.training_targets.to(features.device)
        if options.l2 != "selected":
            return fit(features, targets, classes, options.balance, options.l2)
        held = _validation(context)
        if held is not None:
            return fit_selected(features, targets, classes, options.balance, held)
        apart = held_apart(targets)
        if not apart.any() or apart.all():
            return fit(features, targets, classes, options.balance)
        rows = features[apart], targets[apart]
        return fit_selected(features[~apart], targets[~apart], classes, options.balance, rows, together=True)


def _validation(context: Context) -> tuple[Tensor, Tensor] | None:
    """Features [M, D] and labels [M] of the validation images; None where there are none."""
    try:
        targets = context.validation_targets
    except RunError:
        return None
    features = context.validation_features().float()
    return (features, targets.to(features.device)) if len(targets) else None
