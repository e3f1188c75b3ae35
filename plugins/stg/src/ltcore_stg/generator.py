"""The semantic transformation generator: tokens and two perceptrons."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

#: Keeps the square root's gradient finite where softplus rounds to 0.
_SMALLEST_VARIANCE = 1e-12


class StatisticsGenerator(nn.Module):
    """Mean and diagonal variance of the transformations of a sample, from its feature and a token (eq. 2).

    ``mu, var = s(a + p)``: two perceptrons of linear, batch norm, ReLU, linear; softplus keeps the variance positive.

    Args:
        feature_dim: D.
        tokens: number of head classes; each has a token [D], drawn from a standard normal.
        hidden: width of the hidden layers.
    """

    def __init__(self, feature_dim: int, tokens: int, hidden: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(tokens, feature_dim))
        self.mean = _perceptron(feature_dim, hidden)
        self.variance = _perceptron(feature_dim, hidden)

    def forward(self, features: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, D] and the number of each one's token [N] int64 to mean [N, D] and variance [N, D]."""
        x = features + self.tokens[token]
        return self.mean(x), softplus(self.variance(x)) + _SMALLEST_VARIANCE


def _perceptron(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, width))
