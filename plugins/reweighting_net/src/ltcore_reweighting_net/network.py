"""The network that turns a loss into a weight."""

from __future__ import annotations

from torch import Tensor, nn


class WeightNet(nn.Module):
    """A network from an image's loss to its weight in (0, 1): one hidden layer (Shu et al. 2019, section 2.2).

    Args:
        hidden: units of the hidden layer.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())

    def forward(self, losses: Tensor) -> Tensor:
        """Weights [N] of losses [N]."""
        weights: Tensor = self.layers(losses[:, None])
        return weights[:, 0]
