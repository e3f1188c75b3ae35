"""The ResNeXts for CIFAR: a stem and three stages of bottleneck blocks whose middle convolution has groups."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ltcore import Backbone
from ltcore_cifar_resnet.network import conv3x3, kaiming_normal

#: Channels of the stem, and of the three stages' output.
STEM, STAGES = 64, (256, 512, 1024)


class GroupedBottleneck(nn.Module):
    """``relu(shortcut(x) + bn(conv1x1(relu(bn(grouped3x3(relu(bn(conv1x1(x)))))))))``, the 3x3 with a stride.

    The form (c) of the paper's figure 3. The shortcut is the identity, or a 1x1 convolution and batch norm where the
    shape changes.
    """

    def __init__(self, in_channels: int, inner: int, channels: int, cardinality: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=cardinality, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, H, W] to [N, D', ceil(H / stride), ceil(W / stride)]."""
        # In place only on what this block made itself: x may be a tap's output that somebody holds.
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class ResNeXt(Backbone):
    """ResNeXt for small images: a stem, then three stages of ``(depth - 2) / 9`` blocks.

    Xie, Girshick, Dollar, Tu, He, "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017,
    section 5.3. The stages give 256, 512 and 1024 channels; a block's grouped convolution has `cardinality` groups of
    `width` channels in the first stage, of twice as many in each one after.

    The maps before the pool are the output of ``layer3``, so the taps ``layer3`` and ``maps`` name one tensor.
    ``layer2`` is the place before the last down-sampling.

    Args:
        depth: number of weighted layers with the classifier, 9 n + 2.
        cardinality: number of groups.
        width: channels of a group in the first stage.
        in_channels: channels of the images.

    Raises:
        ValueError: `depth` is not 9 n + 2 with n at least 1.
    """

    inner_taps = ("layer1", "layer2", "layer3")

    def __init__(self, depth: int = 29, cardinality: int = 8, width: int = 64, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 9)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 9 n + 2 with n at least 1 (11, 20, 29, ...), not {depth}")
        self.feature_dim = STAGES[2]
        self.conv1 = conv3x3(in_channels, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                GroupedBottleneck(before, inner, channels, cardinality, stride),
                *(GroupedBottleneck(channels, inner, channels, cardinality) for _ in range(blocks - 1)),
            )
            for before, inner, channels, stride in zip(
                (STEM, *STAGES), (cardinality * width * k for k in (1, 2, 4)), STAGES, (1, 2, 2), strict=False
            )
        )
        kaiming_normal(self)

    def forward_maps(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, 1024, ceil(H / 4), ceil(W / 4)]."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        maps: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return maps
