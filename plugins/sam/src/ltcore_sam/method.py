"""The methods `sam` and `imbsam`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from ltcore import Context, DataError, Features, Method, Objective, Options, RecipeError, Stage, hookimpl
from ltcore_sam.functional import ascent


class SAMOptions(Options):
    """Options of sharpness-aware minimisation."""

    rho: float = Field(default=0.05, ge=0.0)
    """How far away the gradient is taken; with `adaptive` ten times as much is usual (0.5). 0 is plain training."""
    adaptive: bool = False
    """Whether the distance is measured in units of each weight's own size (ASAM)."""
    eta: float = Field(default=0.01, ge=0.0)
    """Added to the size of each weight where `adaptive` is set, so that weights of 0 can move."""


class ImbSAMOptions(SAMOptions):
    """Options of ImbSAM."""

    tail_below: int = Field(default=20, ge=2)
    """Classes with fewer training images than this are the tail, whose loss alone is taken at a distance."""
    tail_weight: float = Field(default=2.0, gt=0.0)
    """What the tail's loss counts for; the public code has 2."""


OptionsT = TypeVar("OptionsT", bound=SAMOptions)


class _SharpnessAware(Method[OptionsT]):
    """Takes gradients where the loss nearby is highest."""

    interface = "1.1"

    def _ascent(self, objective: Objective, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        options = self.options
        return ascent(objective.parameters, gradients, options.rho, options.adaptive, options.eta)


class SAM(_SharpnessAware[SAMOptions]):
    """Sharpness-aware minimisation (Foret et al. 2021), with `adaptive` ASAM (Kwon et al. 2021), see `ascent`."""

    @hookimpl
    def compute_gradients(self, objective: Objective) -> dict[str, Tensor]:
        """Two passes: the way up, and the gradient of the whole loss there."""
        there = self._ascent(objective, objective.gradients(objective()))
        return objective.gradients(objective(at=there), at=there)


class ImbSAM(_SharpnessAware[ImbSAMOptions]):
    """ImbSAM (Zhou et al. 2023): only the tail's loss is taken where it is highest nearby, the rest as it is."""

    checked_with: ClassVar = {"tail_below": 16}

    tail: Tensor

    def __init__(self, options: ImbSAMOptions | None = None) -> None:
        """Outside of a step there is nothing to tell apart."""
        super().__init__(options)
        self._factor: Tensor | None = None

    def check_stage(self, stage: Stage) -> None:
        """Refuse a stage without classification, in which no loss belongs to a class.

        Raises:
            RecipeError: the stage has ``classification: false``.
        """
        if not stage.classification:
            raise RecipeError("without classification no loss belongs to the tail; use sam, or leave it out")

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep which classes are the tail, [C] bool, in a buffer.

        Raises:
            DataError: none is.
        """
        tail = context.class_counts < self.options.tail_below
        if not tail.any():
            raise DataError(
                f"method '{context.name}': no class has fewer than {self.options.tail_below} training images (the "
                f"smallest has {int(context.class_counts.min())}), so that nothing would be taken at a distance; raise "
                "tail_below, or use sam"
            )
        self.register_buffer("tail", tail)

    @hookimpl
    def sample_weights(self, features: Features) -> Tensor | None:
        """A factor of 1 for each row, [N], through which the tail's part of the loss can be asked for."""
        if self._factor is None:
            return None
        return torch.where(self.tail[features.targets], self._factor, torch.ones_like(self._factor))

    @hookimpl
    def compute_gradients(self, objective: Objective) -> dict[str, Tensor]:
        """Two passes: the gradient of all but the tail's loss at the weights, and that of the tail's at a distance."""
        whole, tail = self._evaluate(objective)
        # The tail's first: its graph is part of the whole's, which the second call frees.
        there = self._ascent(objective, objective.gradients(tail, retain_graph=True))
        found = objective.gradients(whole - tail)
        _, tail = self._evaluate(objective, there)
        for name, gradient in objective.gradients(self.options.tail_weight * tail, at=there).items():
            found[name] = found[name] + gradient if name in found else gradient
        return found

    def _evaluate(self, objective: Objective, at: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The whole loss, and the part of it that the tail's rows make, each 0-d.

        The loss is linear in the factor of the tail's rows, so its derivative in that factor is their part, rows that
        other methods have made or mixed included; and it is taken without going through the network.
        """
        # Of zero dimensions, as the losses are, and where they are.
        self._factor = torch.ones((), device=self.tail.device, requires_grad=True)
        try:
            whole = objective(at=at)
            (tail,) = torch.autograd.grad(whole, self._factor, create_graph=True)
        finally:
            self._factor = None
        return whole, tail
