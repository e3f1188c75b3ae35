"""The method `ldam`."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from ltcore import Context, DataError, Method, Options, hookimpl
from ltcore_ldam.classifier import NormalisedClassifier
from ltcore_ldam.functional import ldam_margins, subtract_margin


class LDAMOptions(Options):
    """Options of LDAM."""

    max_margin: float = Field(default=0.5, ge=0.0)
    """Margin of the rarest class, in units of a cosine; 0.3 on iNaturalist. 0 is the normalised classifier alone."""
    scale: float = Field(default=30.0, gt=0.0)
    """What cosines and margins are multiplied with to give logits."""


class LDAM(Method[LDAMOptions]):
    """Label-distribution-aware margins (Cao et al. 2019), see `subtract_margin` and `NormalisedClassifier`."""

    interface = "1.0"
    margins: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep the margins [C], in units of a cosine, in a buffer.

        Raises:
            DataError: a class has no training images.
        """
        try:
            margins = ldam_margins(context.class_counts, self.options.max_margin)
        except ValueError as error:
            raise DataError(f"method 'ldam': {error}") from error
        self.register_buffer("margins", margins)

    @hookimpl
    def build_classifier(self, feature_dim: int, num_classes: int) -> nn.Module:
        """A new normalised classifier."""
        return NormalisedClassifier(feature_dim, num_classes, self.options.scale)

    @hookimpl
    def adjust_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """``z - scale * m_y`` at the target class, [N, C]; the logits themselves where no class has a margin."""
        if self.options.max_margin == 0:
            return logits
        return subtract_margin(logits, targets, self.options.scale * self.margins)
