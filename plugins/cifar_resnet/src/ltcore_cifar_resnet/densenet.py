"""The DenseNets for CIFAR without bottlenecks: a stem, three dense blocks, a transition between each two."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltcore import Backbone
from ltcore_cifar_resnet.network import conv3x3, kaiming_normal

#: Channels of the stem.
STEM = 16


class DenseLayer(nn.Module):
    """``concat(x, dropout(conv(relu(bn(x)))))``: it adds `growth` channels behind those that it is given."""

    def __init__(self, in_channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(in_channels), conv3x3(in_channels, growth)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, H, W] to [N, D + growth, H, W]."""
        return torch.cat([x, self.dropout(self.conv(F.relu(self.bn(x), inplace=True)))], 1)


class Transition(nn.Module):
    """``average pool(dropout(conv(relu(bn(x)))))``, the convolution 1x1 and with as many channels out as in."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, H, W] to [N, D, H // 2, W // 2]."""
        return F.avg_pool2d(self.dropout(self.conv(F.relu(self.bn(x), inplace=True))), 2)


class DenseNet(Backbone):
    """DenseNet for small images, in which a layer reads what all layers of its block before it gave.

    Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", CVPR 2017, section 3: the plain
    kind, without bottleneck layers and without compression in the transitions.

    The maps before the pool are ``relu(bn(block3))``. ``block2`` is the place before the last down-sampling.

    Args:
        depth: number of weighted layers with the classifier, 3 n + 4.
        growth: channels that a layer adds, k.
        dropout: share of the values that dropout behind every convolution but the first sets to zero; the paper takes
            0.2 where images are not augmented.
        in_channels: channels of the images, of at least 4 x 4 pixels.

    Raises:
        ValueError: `depth` is not 3 n + 4 with n at least 1.
    """

    inner_taps = ("block1", "block2", "block3")

    def __init__(self, depth: int = 40, growth: int = 12, dropout: float = 0.0, in_channels: int = 3) -> None:
        super().__init__()
        layers, rest = divmod(depth - 4, 3)
        if rest or layers < 1:
            raise ValueError(f"depth must be 3 n + 4 with n at least 1 (7, 10, ..., 40, 100), not {depth}")
        self.conv = conv3x3(in_channels, STEM)
        widths = [STEM + growth * layers * blocks for blocks in range(4)]
        self.block1, self.block2, self.block3 = (
            nn.Sequential(*(DenseLayer(width + growth * i, growth, dropout) for i in range(layers)))
            for width in widths[:3]
        )
        self.transition1, self.transition2 = (Transition(width, dropout) for width in widths[1:3])
        self.feature_dim = widths[3]
        self.bn = nn.BatchNorm2d(self.feature_dim)
        kaiming_normal(self)

    def forward_maps(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, 16 + growth (depth - 4), H // 4, W // 4]."""
        x = self.block1(self.conv(images))
        x = self.block2(self.transition1(x))
        x = self.block3(self.transition2(x))
        return F.relu(self.bn(x), inplace=True)
