"""The methods `class_balanced` and `inverse_frequency`."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ltcore import Context, DataError, Method, Options, hookimpl
from ltcore_class_balanced.functional import effective_number_weights, inverse_frequency_weights


class ClassBalancedOptions(Options):
    """Options of class-balanced weights."""

    beta: float = Field(default=0.9999, ge=0.0, lt=1.0)
    """How many samples of a class still bring something new: about ``1 / (1 - beta)``. 0 weighs all classes alike."""


class ClassBalanced(Method[ClassBalancedOptions]):
    """Weights by the effective number of samples (Cui et al. 2019), see `effective_number_weights`."""

    interface = "1.0"

    @hookimpl
    def class_weights(self, context: Context) -> Tensor:
        """``(1 - beta) / (1 - beta ** n_c)``, [C], summing to C.

        Raises:
            DataError: a class has no training images.
        """
        try:
            return effective_number_weights(context.class_counts, self.options.beta)
        except ValueError as error:
            raise DataError(f"method 'class_balanced': {error}") from error


class InverseFrequencyOptions(Options):
    """Options of inverse-frequency weights."""

    gamma: float = Field(default=0.5, ge=0.0)
    """Strength: the weight of a class is ``n_c ** -gamma``. 0 weighs all classes alike, 0.5 is the CDT paper's, 1 is
    one over the count."""


class InverseFrequency(Method[InverseFrequencyOptions]):
    """Weights by inverse frequency, the CDT paper's re-weighting, see `inverse_frequency_weights`."""

    interface = "1.0"

    @hookimpl
    def class_weights(self, context: Context) -> Tensor:
        """``n_c ** -gamma``, [C], summing to C.

        Raises:
            DataError: a class has no training images.
        """
        try:
            return inverse_frequency_weights(context.class_counts, self.options.gamma)
        except ValueError as error:
            raise DataError(f"method 'inverse_frequency': {error}") from error
