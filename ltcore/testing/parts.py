"""The data and the network that methods are checked on: quick, learnable, and with all that a method may ask for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ltcore.contract.backbone import Backbone
from ltcore.contract.hook import hookimpl
from ltcore.contract.method import Method, Options
from ltcore.contract.splits import ArraySplit, DataSplits
from ltcore.data.synthetic import class_patterns

COUNTS = (26, 18, 10, 6)


class CheckDataOptions(Options):
    """Options of the data."""

    test_seed: int = Field(default=0, ge=0)
    """What the test images and their labels are drawn with; nothing that is trained may depend on it."""
    image_size: int = Field(default=8, ge=8)
    """Height and width in pixels."""


class CheckData(Method[CheckDataOptions]):
    """A pattern for each of four classes, with noise, long-tailed: 60 images to train on, 8 to test on."""

    @hookimpl
    def build_data(self) -> DataSplits:
        """The images."""
        o = self.options
        patterns = class_patterns(len(COUNTS), o.image_size, 3, 0)

        def split(targets: Tensor, *seed: int) -> ArraySplit:
            noise = np.random.default_rng(seed).normal(scale=0.2, size=(len(targets), *patterns.shape[1:]))
            pixels = np.clip(255 * (patterns[targets.numpy()] + noise), 0, 255).astype(np.uint8)
            return ArraySplit(torch.from_numpy(pixels).permute(0, 3, 1, 2), targets)

        test = torch.from_numpy(np.random.default_rng((7, o.test_seed)).permutation(np.repeat(np.arange(4), 2)))
        return DataSplits(
            train=split(torch.repeat_interleave(torch.tensor(COUNTS)), 1),
            test=split(test, 2, o.test_seed),
            class_names=("a", "b", "c", "d"),
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
        )


class _CheckNetwork(Backbone):
    """Three blocks with batch norm, named as a CIFAR ResNet's; maps of [8, 2, 2] for images of 8 pixels."""

    inner_taps = ("layer1", "layer2", "layer3")
    feature_dim = 8

    def __init__(self, in_channels: int, experts: int) -> None:
        super().__init__()
        self.experts = experts
        widths = (in_channels, 4, 8, self.feature_dim)
        for number, (before, after) in enumerate(pairwise(widths)):
            block = nn.Sequential(
                nn.Conv2d(before, after, 3, stride=1 + (number > 0), padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            self.add_module(f"layer{number + 1}", block)

        self.heads = nn.ModuleList(nn.Conv2d(8, self.feature_dim, 1) for _ in range(experts if experts > 1 else 0))

    def forward_maps(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, 8, H / 4, W / 4]; with experts E to [E * N, 8, H / 4, W / 4]."""
        maps = images
        for block in ("layer1", "layer2", "layer3"):
            maps = self.get_submodule(block)(maps)
        return torch.cat([head(maps) for head in self.heads]) if len(self.heads) else maps


class CheckBackboneOptions(Options):
    """Options of the network."""

    experts: int = Field(default=1, ge=1)
    """Into how many experts it splits behind its third block."""


class CheckBackbone(Method[CheckBackboneOptions]):
    """A network of three small blocks."""

    @hookimpl
    def build_backbone(self, in_channels: int) -> Backbone:
        """The network."""
        return _CheckNetwork(in_channels, self.options.experts)


#: What the checks lend to recipes, by name.
PARTS: dict[str, type[Method]] = {"check_data": CheckData, "check_backbone": CheckBackbone}
