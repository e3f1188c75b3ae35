"""The methods `logit_adjustment` and `balanced_softmax`."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from ltcore import CalibratedClassifier, Context, DataError, Method, Options, hookimpl
from ltcore_logit_adjustment.functional import (
    adjusted_logits,
    balanced_logits,
    class_log_counts,
    class_log_prior,
    post_hoc_shift,
)


class LogitAdjustmentOptions(Options):
    """Options of logit adjustment."""

    tau: float = Field(default=1.0, ge=0.0)
    """Strength: what multiplies the logarithm of a class's share of the training images. 0 changes nothing."""


class LogitAdjustment(Method[LogitAdjustmentOptions]):
    """Logit adjustment (Menon et al. 2021): listed in a stage it adjusts training, under ``calibrate`` it is post hoc.

    See `adjusted_logits` and `post_hoc_shift`.
    """

    interface = "1.0"
    log_prior: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep ``log p`` [C] in a buffer.

        Raises:
            DataError: a class has no training images.
        """
        try:
            log_prior = class_log_prior(context.class_counts)
        except ValueError as error:
            raise DataError(f"method 'logit_adjustment': {error}") from error
        self.register_buffer("log_prior", log_prior)

    @hookimpl
    def adjust_logits(self, logits: Tensor) -> Tensor:
        """``z + tau * log p``, [N, C]."""
        return adjusted_logits(logits, self.log_prior, self.options.tau)

    @hookimpl
    def post_calibrate(self, classifier: nn.Module) -> nn.Module:
        """The classifier with logits ``z - tau * log p``; itself where tau is 0."""
        if self.options.tau == 0:
            return classifier
        return CalibratedClassifier(classifier, shift=post_hoc_shift(self.log_prior, self.options.tau))


class BalancedSoftmax(Method):
    """Balanced softmax (Ren et al. 2020), see `balanced_logits`."""

    interface = "1.0"
    log_counts: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep ``log n`` [C] in a buffer.

        Raises:
            DataError: a class has no training images.
        """
        try:
            log_counts = class_log_counts(context.class_counts)
        except ValueError as error:
            raise DataError(f"method 'balanced_softmax': {error}") from error
        self.register_buffer("log_counts", log_counts)

    @hookimpl
    def adjust_logits(self, logits: Tensor) -> Tensor:
        """``z + log n``, [N, C]."""
        return balanced_logits(logits, self.log_counts)
