"""The network that turns a loss into a weight."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import logsigmoid


class WeightNet(nn.Module):
    """A network from an image's loss to its weight in (0, 1): one hidden layer (Shu et al. 2019, section 2.2).

    It gives logarithms of weights: where all weights of a batch are tiny, their shares of the sum are still exact.

    Args:
        hidden: units of the hidden layer.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, losses: Tensor) -> Tensor:
        """Logarithms of the weights, [N], of losses [N]."""
        return logsigmoid(self.layers(losses[:, None])[:, 0])
