"""The method `influence_balanced`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from ltcore import Context, DataError, Features, Method, Options, hookimpl
from ltcore_influence_balanced.functional import Weighting, class_factors, influence_balanced_loss


class InfluenceBalancedOptions(Options):
    """Options of the influence-balanced loss."""

    start_epoch: int = Field(default=100, ge=0)
    """First epoch of the stage, counted from 0, with the loss; before it is plain cross-entropy. The paper: half."""
    alpha: float = Field(default=1000.0, gt=0.0)
    """What all values are multiplied with. The rate should drop with the start; in the authors' code to a hundredth."""
    weighting: Weighting = "inverse"
    """Factors of the classes, which sum to their number: by the ``inverse`` of the counts (IB), by the ``effective``
    number of samples (IB + CB), or ``none``."""
    gamma: float = Field(default=0.0, ge=0.0)
    """Exponent of the focal factor; 1 is IB + Focal."""
    epsilon: float = Field(default=1e-3, gt=0.0)
    """What is added to the influence, so that a sample without any has a finite weight."""
    constant: bool = False
    """Whether the influence is a constant to the gradient. In the authors' code it is not."""


class InfluenceBalanced(Method[InfluenceBalancedOptions]):
    """Influence-balanced loss (Park et al. 2021), see `influence_balanced_loss`."""

    interface = "1.1"
    checked_with: ClassVar = {"start_epoch": 1}
    factors: Tensor

    @property
    def balances(self) -> bool:
        """Whether its factors even out how much the classes count."""
        return self.options.weighting != "none"

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep the factors of the classes, [C], in a buffer.

        Raises:
            DataError: a class has no training images.
        """
        try:
            self.register_buffer("factors", class_factors(context.class_counts, self.options.weighting))
        except ValueError as error:
            raise DataError(f"method 'influence_balanced': {error}") from error

    @hookimpl
    def compute_loss(self, logits: Tensor, targets: Tensor, features: Features, context: Context) -> Tensor:
        """Cross-entropy before `start_epoch`, then the influence-balanced loss, [N]."""
        options = self.options
        if context.epoch < options.start_epoch:
            return cross_entropy(logits, targets, reduction="none")
        rows = features.features.float()
        return influence_balanced_loss(
            logits, targets, rows, self.factors, options.alpha, options.epsilon, options.gamma, options.constant
        )
