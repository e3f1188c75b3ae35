"""What methods are checked on and beside: data, a network, and other methods; quick, with all that one may ask for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ltcore.contract.backbone import Backbone
from ltcore.contract.context import Context
from ltcore.contract.hook import hookimpl
from ltcore.contract.method import Method, Options
from ltcore.contract.records import Batch, Features
from ltcore.contract.splits import ArraySplit, DataSplits
from ltcore.data.synthetic import class_patterns

COUNTS = (26, 18, 10, 6)


class CheckDataOptions(Options):
    """Options of the data."""

    test_seed: int = Field(default=0, ge=0)
    """What the test images and their labels are drawn with; nothing that is trained may depend on it."""
    held_out_seed: int = Field(default=0, ge=0)
    """What the validation images and their labels are drawn with; a method that learns from them says so."""
    image_size: int = Field(default=8, ge=8)
    """Height and width in pixels."""


class CheckData(Method[CheckDataOptions]):
    """A pattern for each of four classes, with noise, long-tailed: 60 images to train on, 4 held out, 8 to test on."""

    provides = frozenset({"validation"})

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
        held_out = torch.from_numpy(np.random.default_rng((8, o.held_out_seed)).permutation(4))
        return DataSplits(
            train=split(torch.repeat_interleave(torch.tensor(COUNTS)), 1),
            val=split(held_out, 3, o.held_out_seed),
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


class CheckRowsOptions(Options):
    """Options of the rows."""

    tap: str = "pooled"
    """Where they are appended."""


class CheckRows(Method[CheckRowsOptions]):
    """Another method whose rows a checked one must leave alone: three synthetic rows, a term and something kept."""

    interface = "1.1"
    auxiliary = ("made",)

    @property
    def tap(self) -> str:
        """Where they are appended."""
        tap = self.options.tap
        return tap

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        """Three rows more, each halfway between two of the batch; mixed as the batch is."""
        x, rows = features.features, torch.arange(3, device=context.device) % len(features.targets)
        made = 0.5 * (x[rows] + x[rows - 1])
        changed = features.append(made, features.targets[rows], features.source_index[rows])
        partners, share = features.partner_targets, features.target_weight
        if partners is not None and share is not None:
            changed = replace(
                changed,
                partner_targets=torch.cat([partners, partners[rows]]),
                target_weight=torch.cat([share, share[rows]]),
            )
        return changed.keeping(context.name, made).with_losses(context.name, made=0 * made.sum())


class CheckMix(Method):
    """Another method that gives every row a second label."""

    interface = "1.1"
    breaks = frozenset({"hard_labels"})

    @hookimpl
    def mix_inputs(self, batch: Batch) -> Batch:
        """The images, with three quarters of their own label and a quarter of their neighbour's."""
        share = torch.full(batch.targets.shape, 0.75, device=batch.targets.device)
        return replace(batch, partner_targets=batch.targets.roll(1), target_weight=share)


def new_order(rows: int) -> Tensor:
    """Which row of a batch stands where once `CheckOrder` has been at it, [rows]."""
    return torch.arange(rows).flip(0).roll(1)


class CheckOrder(Method):
    """Another order of the batch's rows."""

    interface = "1.1"

    @hookimpl
    def mix_inputs(self, batch: Batch) -> Batch:
        """The same rows."""
        order = new_order(len(batch.targets)).to(batch.targets.device)
        return replace(
            batch, images=batch.images[order], targets=batch.targets[order], source_index=batch.source_index[order]
        )


#: What the checks lend to recipes, by name.
PARTS: dict[str, type[Method]] = {
    "check_data": CheckData,
    "check_backbone": CheckBackbone,
    "check_rows": CheckRows,
    "check_mix": CheckMix,
    "check_order": CheckOrder,
}
