"""The methods `cdt` and `count_norm`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from ltcore import Context, DataError, Method, Options, hookimpl, scale_weights
from ltcore_cdt.functional import count_scale, temperatures, tempered_logits


class CDTOptions(Options):
    """Options of class-dependent temperatures."""

    gamma: float = Field(default=0.2, ge=0.0)
    """Strength: the temperature of a class is ``(n_max / n_c) ** gamma``. 0 is the loss alone; the paper's figures on
    CIFAR-10 have 0.3."""
    start_epoch: int = Field(default=0, ge=0)
    """First epoch of the stage, counted from 0, with temperatures; before it they are 1, as with gamma 0."""


class CDT(Method[CDTOptions]):
    """Class-dependent temperatures (Ye et al. 2020), see `temperatures` and `tempered_logits`."""

    interface = "1.0"
    temperature: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep the temperatures [C] in a buffer.

        Raises:
            DataError: a class has no training images.
        """
        try:
            self.register_buffer("temperature", temperatures(context.class_counts, self.options.gamma))
        except ValueError as error:
            raise DataError(f"method 'cdt': {error}") from error

    @hookimpl
    def adjust_logits(self, logits: Tensor, context: Context) -> Tensor:
        """``z_c / a_c``, [N, C]; the logits themselves at gamma 0 and before `start_epoch`."""
        if self.options.gamma == 0 or context.epoch < self.options.start_epoch:
            return logits
        return tempered_logits(logits, self.temperature)


class CountNormOptions(Options):
    """Options of count normalisation."""

    tau: float = Field(default=0.5, ge=0.0, le=1.0)
    """Strength: 0 changes no weight. To be selected on held-out images, as the paper does; it names no value."""
    bias: Literal["keep", "drop"] = "keep"
    """What becomes of the bias, which the formula does not have: kept as it was trained, or dropped."""


class CountNorm(Method[CountNormOptions]):
    """A trained classifier's weights over a power of the class counts (Ye et al. 2020), see `count_scale`."""

    interface = "1.0"

    @hookimpl
    def post_calibrate(self, classifier: nn.Module, context: Context) -> nn.Module:
        """The classifier with logits ``x @ w'.T + b``, ``w'_c = w_c / n_c ** tau``; ``b`` kept or dropped.

        Raises:
            DataError: a class has no training images.
        """
        keep = self.options.bias == "keep"
        if self.options.tau == 0 and (keep or getattr(classifier, "bias", None) is None):
            return classifier
        try:
            scale = count_scale(context.class_counts, self.options.tau)
        except ValueError as error:
            raise DataError(f"method 'count_norm': {error}") from error
        return scale_weights(classifier, scale, keep)
