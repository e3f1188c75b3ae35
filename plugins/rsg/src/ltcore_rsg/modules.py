"""RSG's networks, initialised as in the published code."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Centres(nn.Module):
    """Centres of each class, and the linear map that shares a row out among those of its class.

    Args:
        classes: C.
        channels: D.
        each: J, centres a class.
    """

    def __init__(self, classes: int, channels: int, each: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, channels, each))
        self.bias = nn.Parameter(torch.ones(classes, each))
        self.centres = nn.Parameter(torch.zeros(classes, each, channels))


class PairNetwork(nn.Module):
    """Whether two maps are of one class: the "contrastive module".

    Args:
        channels: D of the maps.
        hidden: channels inside.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            begin(nn.Conv2d(2 * channels, hidden, 1)), nn.ReLU(), begin(nn.Conv2d(hidden, hidden, 3, padding=1))
        )
        self.fc = nn.Linear(hidden, 2)
        nn.init.normal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two times [M, D, H, W] to logits [M, 2], of "different" and "same"."""
        maps: Tensor = self.convolutions(torch.cat([first, second], 1))
        logits: Tensor = self.fc(maps.mean((2, 3)))
        return logits

    def as_constant(self, first: Tensor, second: Tensor) -> Tensor:
        """What `forward` gives, with a gradient to the maps and none to the weights."""
        weights = {name: weight.detach() for name, weight in self.named_parameters()}
        logits: Tensor = functional_call(self, weights, (first, second))
        return logits


def begin(convolution: nn.Conv2d) -> nn.Conv2d:
    """Kaiming's normal weights by fan in, and no bias."""
    nn.init.kaiming_normal_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution
