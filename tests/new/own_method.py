"""A method in one file, as it is tried; tests take it over into a distribution."""

from __future__ import annotations

from typing import ClassVar

import torch
from ltcore import Context, Features, Method, Options, hookimpl
from pydantic import Field
from torch import Tensor, nn


class OwnThingOptions(Options):
    """Options of the method."""

    size: float = Field(gt=0)
    """How large the term is."""


class OwnThing(Method[OwnThingOptions]):
    """A term with a weight of its own, on the features of a network that stays as it is."""

    interface = "1.1"
    requires = frozenset({"validation", "earlier_stage", "fixed_backbone"})
    auxiliary = ("own",)
    checked_with: ClassVar = {"size": 0.5}

    def __init__(self, options: OwnThingOptions | None = None) -> None:
        super().__init__(options)
        self.scale = nn.Parameter(torch.ones(()))

    @hookimpl
    def auxiliary_losses(self, features: Features, context: Context) -> dict[str, Tensor]:
        """The term."""
        count = len(context.validation_targets)
        values = self.scale * features.features.float().square().mean() + self.scale.square()
        return {"own": self.options.size * values / count}


class Other(Method):
    """Logits at a temperature of two."""

    interface = "1.1"

    @hookimpl
    def adjust_logits(self, logits: Tensor) -> Tensor:
        """Half the logits."""
        return logits / 2


class Hookless(Method):
    """Does nothing."""


class Unmade(Method[OwnThingOptions]):
    """Cannot be made, for its option has no default."""

    @hookimpl
    def adjust_logits(self, logits: Tensor) -> Tensor:
        """The logits."""
        return logits
