"""What combines the experts once the router is trained: gates that say whether an image asks the next expert."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from ltcore_ride.functional import mean_of_used, running_means, used_experts


class RoutedExperts(nn.Module):
    """The mean logits of those experts that an image asks.

    Behind each expert but the last stands a gate: a hidden layer of its own on the expert's feature of norm 1, and, on
    that and the largest mean logits of the experts so far, a linear layer which all gates share.

    All experts are computed for every image, and the gates choose among what they gave; an image that needs few of them
    is not quicker here.

    Args:
        feature_dim: D.
        num_classes: C.
        experts: E, at least 2.
        top: how many of the largest logits a gate sees, at most C.
        hidden: width of the hidden layers.
    """

    def __init__(self, feature_dim: int, num_classes: int, experts: int, top: int, hidden: int) -> None:
        super().__init__()
        self.top = min(top, num_classes)
        self.hidden = nn.ModuleList(nn.Linear(feature_dim, hidden) for _ in range(experts - 1))
        self.last = nn.Linear(hidden + self.top, 1)
        for layer in (*self.hidden, self.last):
            nn.init.kaiming_normal_(layer.weight)

    def scores(self, pooled: Tensor, logits: Tensor) -> Tensor:
        """Logits of the gates [N, E - 1]; above 0 the next expert is asked.

        Args:
            pooled: [N, E, D].
            logits: [N, E, C].
        """
        best = running_means(logits).topk(self.top, dim=2).values
        directions = normalize(pooled, dim=2)
        parts = [
            self.last(torch.cat([best[:, number], relu(layer(directions[:, number]))], 1))
            for number, layer in enumerate(self.hidden)
        ]
        return torch.cat(parts, 1)

    def forward(self, pooled: Tensor, logits: Tensor) -> Tensor:
        """Pooled features [N, E, D] and logits [N, E, C] to logits [N, C]."""
        return mean_of_used(logits, used_experts(self.scores(pooled, logits)))
