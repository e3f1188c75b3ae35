"""SAFA's networks (sec. 3.1): Conv-BN-ReLU-Conv, for Q with a fully connected layer behind."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_block(in_channels: int, channels: int, hidden: int) -> nn.Sequential:
    """Conv-BN-ReLU-Conv with 3 x 3 kernels: [N, in_channels, H, W] to [N, channels, H, W]."""
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 3, padding=1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, channels, 3, padding=1),
    )


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
