"""The methods `drw` and `drs`."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from pydantic import Field
from torch import Tensor

from ltcore import Context, DataError, Method, Options, class_balanced_distribution, hookimpl
from ltcore_deferred.functional import effective_number_weights


class DRSOptions(Options):
    """Options of deferred re-sampling."""

    start_epoch: int = Field(default=160, ge=0)
    """First epoch of the stage, counted from 0, that is re-balanced: that of the first drop of the learning rate."""


class DRWOptions(DRSOptions):
    """Options of deferred re-weighting."""

    beta: float = Field(default=0.9999, ge=0.0, lt=1.0)
    """How many samples of a class still bring something new: about ``1 / (1 - beta)``. 0 weighs all classes alike."""


OptionsT = TypeVar("OptionsT", bound=DRSOptions)


class _Deferred(Method[OptionsT]):
    """What begins at an epoch of its stage."""

    interface = "1.0"
    checked_with: ClassVar = {"start_epoch": 1}


class DRW(_Deferred[DRWOptions]):
    """Deferred re-weighting (Cao et al. 2019): no weights, then those of `effective_number_weights`."""

    @hookimpl
    def class_weights(self, context: Context) -> Tensor | None:
        """None before `start_epoch`, effective-number weights [C] from it on.

        Raises:
            DataError: a class has no training images.
        """
        if context.epoch < self.options.start_epoch or self.options.beta == 0:
            return None
        try:
            return effective_number_weights(context.class_counts, self.options.beta)
        except ValueError as error:
            raise DataError(f"method 'drw': {error}") from error


class DRS(_Deferred[DRSOptions]):
    """Deferred re-sampling (Cao et al. 2019): every image once, then every class equally often."""

    @hookimpl
    def class_distribution(self, context: Context) -> Tensor | None:
        """None before `start_epoch`, ``1 / C`` for each class [C] from it on."""
        return None if context.epoch < self.options.start_epoch else class_balanced_distribution(context.class_counts)
