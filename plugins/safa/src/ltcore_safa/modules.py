"""SAFA's networks (sec. 3.1): Conv-BN-ReLU-Conv, for Q with a fully connected layer behind; and how each begins."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

#: Standard deviation of the change that the networks begin with, in those of the features.
FIRST_CHANGE = 0.3

#: What keeps a normalised value positive through the ReLU in all but one of forty cases.
_ABOVE_ZERO = 2.0


def conv_block(in_channels: int, channels: int, hidden: int) -> nn.Sequential:
    """Conv-BN-ReLU-Conv with 3 x 3 kernels: [N, in_channels, H, W] to [N, channels, H, W]."""
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 3, padding=1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, channels, 3, padding=1),
    )


def begin_random(block: nn.Sequential, deviation: float) -> nn.Sequential:
    """Let a block begin as a random map whose values have about this standard deviation, whatever comes in.

    Batch norm makes what comes in forget its scale: behind the ReLU are values of mean ``1 / sqrt(2 pi)`` and variance
    ``(1 - 1 / pi) / 2``, if they were normal. The bias takes their mean away, which would shift all rows alike.
    """
    first, last = block[0], block[3]
    nn.init.kaiming_normal_(first.weight, nonlinearity="relu")  # type: ignore[arg-type]
    with torch.no_grad():
        weight, bias = last.weight, last.bias
        fan_in = weight[0].numel()  # type: ignore[index]
        nn.init.normal_(weight, std=deviation / math.sqrt(fan_in * (1 - 1 / math.pi) / 2))  # type: ignore[arg-type]
        bias.copy_(-weight.sum((1, 2, 3)) / math.sqrt(2 * math.pi))  # type: ignore[operator]
    return block


def begin_as_identity(block: nn.Sequential) -> nn.Sequential:
    """Let a block begin as what it is given, normalised; with fewer hidden channels, for as many channels as those."""
    first, norm, last = block[0], block[1], block[3]
    nn.init.dirac_(first.weight)  # type: ignore[arg-type]
    nn.init.dirac_(last.weight)  # type: ignore[arg-type]
    nn.init.constant_(norm.bias, _ABOVE_ZERO)  # type: ignore[arg-type]
    nn.init.constant_(last.bias, -_ABOVE_ZERO)  # type: ignore[arg-type]
    return block


class PairClassifier(nn.Module):
    """Q: whether two feature maps are of one class.

    Args:
        channels: D of the maps.
        hidden: channels between the convolutions.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.convolutions = conv_block(2 * channels, channels, hidden)
        self.fc = nn.Linear(channels, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two times [M, D, H, W] to logits [M]; the maps' mean goes to the fully connected layer."""
        maps: Tensor = self.convolutions(torch.cat([first, second], 1))
        logits: Tensor = self.fc(maps.mean((2, 3)))[:, 0]
        return logits
