"""The network: a stem and three stages of basic blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ltcore import Backbone
from ltcore_cifar_resnet.functional import option_a_shortcut


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (at stride 1) and has no bias, since batch norm follows."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def kaiming_normal(network: nn.Module) -> None:
    """Draw the weights of all convolutions, normal with variance 2 / fan-in (He et al. 2015); fan-in of a group."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


class BasicBlock(nn.Module):
    """``relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))``, the first convolution with a stride."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, H, W] to [N, D', ceil(H / stride), ceil(W / stride)]."""
        # In place only on what this block made itself: x may be a tap's output that somebody holds.
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += option_a_shortcut(x, self.conv2.out_channels, self.stride)
        return F.relu(out, inplace=True)


class ResNet(Backbone):
    """ResNet for small images: a stem, then three stages of ``(depth - 2) / 6`` blocks.

    Each stage after the first is twice as wide and half as large as the one before.

    The maps before the pool are the output of ``layer3``, so the taps ``layer3`` and ``maps`` name one tensor.

    Args:
        depth: number of weighted layers with the classifier, 6 n + 2.
        width: channels of the stem and of the first stage.
        in_channels: channels of the images.

    Raises:
        ValueError: `depth` is not 6 n + 2 with n at least 1.
    """

    inner_taps = ("layer1", "layer2", "layer3")

    def __init__(self, depth: int = 32, width: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6 n + 2 with n at least 1 (8, 14, 20, ...), not {depth}")
        self.feature_dim = 4 * width
        self.conv1 = conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(blocks, width, width, stride=1)
        self.layer2 = self._stage(blocks, width, 2 * width, stride=2)
        self.layer3 = self._stage(blocks, 2 * width, 4 * width, stride=2)
        kaiming_normal(self)  # by fan-in, as the published tables

    @staticmethod
    def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))

    def forward_maps(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, 4 width, ceil(H / 4), ceil(W / 4)]."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        maps: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return maps
