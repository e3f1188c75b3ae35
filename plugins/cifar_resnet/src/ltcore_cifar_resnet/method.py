"""The methods `cifar_resnet`, `cifar_densenet` and `cifar_resnext`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from ltcore import Backbone, Method, Options, RecipeError, hookimpl
from ltcore_cifar_resnet.densenet import DenseNet
from ltcore_cifar_resnet.network import ResNet
from ltcore_cifar_resnet.resnext import ResNeXt


class CifarResNetOptions(Options):
    """Options of the CIFAR ResNets."""

    depth: Literal[8, 20, 32, 44, 56, 110] = 32
    """Number of weighted layers, the classifier included; 32 is that of the published long-tailed CIFAR tables."""
    width: int = Field(default=16, ge=1)
    """Channels of the first stage; the second has twice, the third four times as many."""


class CifarResNet(Method[CifarResNetOptions]):
    """ResNet-8 to ResNet-110 for small images (He et al. 2016), see `ResNet`."""

    interface = "1.0"
    checked_with: ClassVar = {"depth": 8, "width": 4}

    @hookimpl
    def build_backbone(self, in_channels: int) -> Backbone:
        """The network for images of any size with `in_channels` channels."""
        return ResNet(self.options.depth, self.options.width, in_channels)


class CifarDenseNetOptions(Options):
    """Options of the CIFAR DenseNets."""

    depth: int = 40
    """Number of weighted layers, the classifier included: 3 n + 4; the paper has 40 and 100."""
    growth: int = Field(default=12, ge=1)
    """Channels that a layer adds (k); the paper has 12 and 24."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout behind every convolution but the first; the paper takes 0.2 where images are not augmented."""

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, depth: int) -> int:
        return _layers(depth, 3, 4)


class CifarDenseNet(Method[CifarDenseNetOptions]):
    """DenseNet for small images, without bottlenecks (Huang et al. 2017), see `DenseNet`."""

    interface = "1.0"
    checked_with: ClassVar = {"depth": 7, "growth": 4}

    @hookimpl
    def build_backbone(self, in_channels: int, image_size: int) -> Backbone:
        """The network for images with `in_channels` channels.

        Raises:
            RecipeError: the images are smaller than 4 x 4 pixels.
        """
        if image_size < 4:
            raise RecipeError(
                f"a DenseNet halves images twice, and these have {image_size} pixels a side; use cifar_resnet, which "
                "takes any size"
            )
        options = self.options
        return DenseNet(options.depth, options.growth, options.dropout, in_channels)


class CifarResNeXtOptions(Options):
    """Options of the CIFAR ResNeXts; the defaults are ResNeXt-29, 8x64d."""

    depth: int = 29
    """Number of weighted layers, the classifier included: 9 n + 2; the paper has 29."""
    cardinality: int = Field(default=8, ge=1)
    """Groups of a block's 3x3 convolution; the paper has 8 and 16."""
    width: int = Field(default=64, ge=1)
    """Channels of a group in the first stage, doubled in each one after (64: 64d)."""

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, depth: int) -> int:
        return _layers(depth, 9, 2)


class CifarResNeXt(Method[CifarResNeXtOptions]):
    """ResNeXt for small images (Xie et al. 2017), see `ResNeXt`."""

    interface = "1.0"
    checked_with: ClassVar = {"depth": 11, "cardinality": 2, "width": 4}

    @hookimpl
    def build_backbone(self, in_channels: int) -> Backbone:
        """The network for images of any size with `in_channels` channels."""
        options = self.options
        return ResNeXt(options.depth, options.cardinality, options.width, in_channels)


def _layers(depth: int, each: int, rest: int) -> int:
    if depth < each + rest or (depth - rest) % each:
        raise ValueError(f"{depth} is not {each} n + {rest} with n at least 1")
    return depth
