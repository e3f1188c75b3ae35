"""The methods `sade` and `balpoe`."""

from __future__ import annotations

from typing import TypeVar

from pydantic import Field, model_validator
from torch import Tensor

from ltcore import Context, DataError, Features, Method, Options, hookimpl
from ltcore_expert_losses.functional import balpoe_shifts, sade_shifts, shifted_logits

OptionsT = TypeVar("OptionsT", bound=Options)


class _OwnLosses(Method[OptionsT]):
    """Each expert's training logits are shifted in its own way; a subclass says how. See `shifted_logits`."""

    interface = "1.1"
    shifts: Tensor

    def shifts_of(self, class_counts: Tensor, experts: int) -> Tensor:
        """What is added to each expert's logits, [E, C] float32."""
        raise NotImplementedError

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep what is added [E, C] in a buffer.

        Raises:
            DataError: a class has no training images.
        """
        try:
            shifts = self.shifts_of(context.class_counts, context.model.backbone.experts)
        except ValueError as error:
            raise DataError(str(error)) from error
        self.register_buffer("shifts", shifts)

    @hookimpl
    def adjust_logits(self, logits: Tensor, features: Features) -> Tensor:
        """Logits [R, C] with what the expert of each row adds."""
        assert features.expert is not None  # the plan has seen to it that there are experts
        return shifted_logits(logits, self.shifts, features.expert)


class SADEOptions(Options):
    """Options of SADE."""

    strength: float = Field(default=2.0, ge=0)
    """lambda: how strongly the last expert is trained for rare classes; 1 on iNaturalist and Places-LT."""


class SADE(_OwnLosses[SADEOptions]):
    """Experts with the skills of different class distributions (Zhang et al. 2022), see `sade_shifts`.

    Their losses are added up, which is `ride`'s part.
    """

    requires = frozenset({"experts", "summed_experts"})

    def shifts_of(self, class_counts: Tensor, experts: int) -> Tensor:
        """[E, C], see `sade_shifts`."""
        return sade_shifts(class_counts, experts, self.options.strength)


class BalPoEOptions(Options):
    """Options of BalPoE; the defaults are those on CIFAR."""

    tau_min: float = 0.0
    """Strength of the first expert's logit adjustment; -1 on iNaturalist."""
    tau_max: float = 2.0
    """That of the last; 2.5 on ImageNet-LT, 3 on iNaturalist. The others lie between at equal distances."""

    @model_validator(mode="after")
    def _ascending(self) -> BalPoEOptions:
        if self.tau_max < self.tau_min:
            raise ValueError(f"tau_max {self.tau_max} lies below tau_min {self.tau_min}; exchange them")
        return self


class BalPoE(_OwnLosses[BalPoEOptions]):
    """Experts with logit adjustment of different strengths (Sanchez Aimar et al. 2023), see `balpoe_shifts`."""

    requires = frozenset({"experts"})

    def shifts_of(self, class_counts: Tensor, experts: int) -> Tensor:
        """[E, C], see `balpoe_shifts`."""
        return balpoe_shifts(class_counts, experts, self.options.tau_min, self.options.tau_max)
