"""The method `lade`."""

from __future__ import annotations

from typing import ClassVar

from ltcore_logit_adjustment import adjusted_logits, class_log_prior
from pydantic import Field
from torch import Tensor

from ltcore import Context, DataError, Features, Method, Options, hookimpl
from ltcore_lade.functional import lader_loss


class LADEOptions(Options):
    """Options of LADE."""

    weight: float = Field(default=0.1, ge=0.0)
    """Weight of the regulariser, the paper's alpha; 0.05 on ImageNet-LT and iNaturalist, 0.005 on Places-LT. 0 is the
    cross-entropy part alone: logit adjustment with tau 1."""
    regularizer: float = Field(default=0.1, ge=0.0)
    """How much the bound's second term is held near 0, the paper's lambda; 0.01 on CIFAR-100-LT at imbalance 100, 0.5
    on ImageNet-LT and iNaturalist."""


class LADE(Method[LADEOptions]):
    """Label distribution disentangling (Hong et al. 2021), see `lader_loss`."""

    interface = "1.0"
    auxiliary: ClassVar = ("lader",)
    requires: ClassVar = {"hard_labels"}
    log_prior: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep the logarithms of the shares, [C], in a buffer.

        Raises:
            DataError: a class has no training images.
        """
        try:
            self.register_buffer("log_prior", class_log_prior(context.class_counts))
        except ValueError as error:
            raise DataError(f"method 'lade': {error}") from error

    @hookimpl
    def adjust_logits(self, logits: Tensor) -> Tensor:
        """``z + log p_s``, [N, C], in training alone."""
        return adjusted_logits(logits, self.log_prior)

    @hookimpl
    def auxiliary_losses(self, features: Features, logits: Tensor) -> dict[str, Tensor]:
        """``weight`` times the regulariser, of the batch's logits as the classifier gives them, 0-d."""
        if self.options.weight == 0:
            return {"lader": logits.new_zeros(())}
        term = lader_loss(logits.float(), features.targets, self.log_prior, self.options.regularizer)
        return {"lader": self.options.weight * term}
