"""The method `cifar_resnet`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ltcore import Backbone, Method, Options, hookimpl
from ltcore_cifar_resnet.network import ResNet


class CifarResNetOptions(Options):
    """Options of the CIFAR ResNets."""

    depth: Literal[8, 20, 32, 44, 56, 110] = 32
    """Number of weighted layers, the classifier included; 32 is that of the published long-tailed CIFAR tables."""
    width: int = Field(default=16, ge=1)
    """Channels of the first stage; the second has twice, the third four times as many."""


class CifarResNet(Method):
    """ResNet-8 to ResNet-110 for small images (He et al. 2016), see `ResNet`."""

    Options = CifarResNetOptions

    @hookimpl
    def build_backbone(self, in_channels: int) -> Backbone:
        """The network for images of any size with `in_channels` channels."""
        return ResNet(self.options.depth, self.options.width, in_channels)
