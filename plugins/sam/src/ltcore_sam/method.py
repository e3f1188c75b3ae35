"""The methods `sam`, `imbsam` and `focal_sam`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from ltcore import Context, DataError, Features, Method, Objective, Options, RecipeError, Stage, hookimpl
from ltcore_sam.functional import ascent, focal_shares


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


class FocalSAMOptions(SAMOptions):
    """Options of Focal-SAM."""

    rho: float = Field(default=0.2, ge=0.0)
    """How far away the gradient is taken: 0.2 on CIFAR-10-LT, 0.3 on CIFAR-100-LT in the public code."""
    strength: float = Field(default=0.5, ge=0.0)
    """The share of a row's loss that is taken at a distance, for a class without images: 0.5 on CIFAR-10-LT, 0.8 on
    CIFAR-100-LT. Above 1 the plain loss of rare classes counts negatively."""
    gamma: float = Field(default=1.0, ge=0.0)
    """How fast the share falls with a class's part of the images: 3 on CIFAR-10-LT, 3.2 on CIFAR-100-LT."""


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


class _PartlySharp(_SharpnessAware[OptionsT]):
    """Takes a share of each row's loss where it is highest nearby, by the row's class, and the rest as it is."""

    shares: Tensor

    def __init__(self, options: OptionsT | None = None) -> None:
        """Outside of a step there is nothing to tell apart."""
        super().__init__(options)
        self._factor: Tensor | None = None

    @property
    def part_weight(self) -> float:
        """What the shares' part of the loss counts for in the step."""
        return 1.0

    def shares_of(self, class_counts: Tensor, name: str) -> Tensor:
        """The share of each class, [C] float32; `name` is the method's in the recipe, for errors."""
        raise NotImplementedError

    def check_stage(self, stage: Stage) -> None:
        """Refuse a stage without classification, in which no loss belongs to a class.

        Raises:
            RecipeError: the stage has ``classification: false``.
        """
        if not stage.classification:
            raise RecipeError("without classification no loss belongs to a class; use sam, or leave it out")

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep the share of each class, [C], in a buffer.

        Raises:
            DataError: all would be 0.
        """
        self.register_buffer("shares", self.shares_of(context.class_counts, context.name))

    @hookimpl
    def sample_weights(self, features: Features) -> Tensor | None:
        """A factor of 1 for each row, [N], through which the shares' part of the loss can be asked for."""
        if self._factor is None:
            return None
        share = self.shares[features.targets]
        return (1 - share) + share * self._factor

    @hookimpl
    def compute_gradients(self, objective: Objective) -> dict[str, Tensor]:
        """Two passes: the gradient of all but the shares at the weights, and that of the shares at a distance."""
        whole, part = self._evaluate(objective)
        # The part's first: its graph is part of the whole's, which the second call frees.
        there = self._ascent(objective, objective.gradients(part, retain_graph=True))
        found = objective.gradients(whole - part)
        _, part = self._evaluate(objective, there)
        for name, gradient in objective.gradients(self.part_weight * part, at=there).items():
            found[name] = found[name] + gradient if name in found else gradient
        return found

    def _evaluate(self, objective: Objective, at: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The whole loss, and the part of it that is the rows' shares, each 0-d.

        The loss is linear in the factor of the shares, so its derivative in that factor is their part, rows that other
        methods have made or mixed included; and it is taken without going through the network.
        """
        # Of zero dimensions, as the losses are, and where they are.
        self._factor = torch.ones((), device=self.shares.device, requires_grad=True)
        try:
            whole = objective(at=at)
            (part,) = torch.autograd.grad(whole, self._factor, create_graph=True)
        finally:
            self._factor = None
        return whole, part


class ImbSAM(_PartlySharp[ImbSAMOptions]):
    """ImbSAM (Zhou et al. 2023): only the tail's loss is taken where it is highest nearby, the rest as it is."""

    checked_with: ClassVar = {"tail_below": 16}

    @property
    def part_weight(self) -> float:
        """What the tail's loss counts for."""
        return self.options.tail_weight

    def shares_of(self, class_counts: Tensor, name: str) -> Tensor:
        """1 for the tail and 0 for the rest, [C].

        Raises:
            DataError: no class belongs to the tail.
        """
        tail = class_counts < self.options.tail_below
        if not tail.any():
            raise DataError(
                f"method '{name}': no class has fewer than {self.options.tail_below} training images (the "
                f"smallest has {int(class_counts.min())}), so that nothing would be taken at a distance; raise "
                "tail_below, or use sam"
            )
        return tail.float()


class FocalSAM(_PartlySharp[FocalSAMOptions]):
    """Focal-SAM (Li et al. 2025): the rarer a row's class, the more of its loss is taken where it is highest nearby.

    See `focal_shares`.
    """

    def shares_of(self, class_counts: Tensor, name: str) -> Tensor:
        """[C], see `focal_shares`."""
        return focal_shares(class_counts, self.options.strength, self.options.gamma)
