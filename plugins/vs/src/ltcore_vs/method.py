"""The method `vs`."""

from __future__ import annotations

from ltcore_cdt import temperatures
from ltcore_logit_adjustment import class_log_prior
from pydantic import Field
from torch import Tensor

from ltcore import Context, DataError, Method, Options, hookimpl
from ltcore_vs.functional import vs_logits


class VSOptions(Options):
    """Options of the VS loss."""

    gamma: float = Field(default=0.3, ge=0.0)
    """Strength of what multiplies: a class's logit is divided by ``(n_max / n_c) ** gamma``. 0 is logit adjustment."""
    tau: float = Field(default=1.0, ge=0.0)
    """Strength of what is added: ``tau * log(n_c / n)``. 0 is CDT."""
    start_epoch: int = Field(default=0, ge=0)
    """First epoch of the stage, counted from 0, with changed logits; before it they are as they are."""


class VS(Method[VSOptions]):
    """Vector scaling (Kini et al. 2021), see `vs_logits`."""

    interface = "1.0"
    temperature: Tensor
    log_prior: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep the temperatures and the logarithms of the shares, [C] each, in buffers.

        Raises:
            DataError: a class has no training images.
        """
        try:
            self.register_buffer("temperature", temperatures(context.class_counts, self.options.gamma))
            self.register_buffer("log_prior", class_log_prior(context.class_counts))
        except ValueError as error:
            raise DataError(f"method 'vs': {error}") from error

    @hookimpl
    def adjust_logits(self, logits: Tensor, context: Context) -> Tensor:
        """``z / (n_max / n_c) ** gamma + tau * log p_c``, [N, C]; the logits themselves before `start_epoch`."""
        options = self.options
        if context.epoch < options.start_epoch or options.gamma == options.tau == 0:
            return logits
        return vs_logits(logits, self.temperature, self.log_prior, options.tau)
