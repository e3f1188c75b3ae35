"""A residual network with its last block twice."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn

from ltcore import Backbone, RecipeError

_STAGE = re.compile(r"layer\d+")


class BilateralNetwork(Backbone):
    """A network whose last block is there twice, side by side (sec. 4.1).

    An image goes through the shared layers once and through both blocks; its maps are joined, [N, 2 D, H, W], those of
    the conventional branch first. A pair of images (`ltcore_bbn.stack_pairs`) goes through the shared layers one after
    the other, so that batch norm takes its statistics from one sampler's images at a time; the first goes on through
    the conventional block, the second through the re-balancing one.

    It has no inner taps: where pairs come in, each shared layer is called twice.

    Args:
        shared: the network without its last block.
        conventional: its last block.
        rebalancing: another one of the kind.
    """

    def __init__(self, shared: Backbone, conventional: nn.Module, rebalancing: nn.Module) -> None:
        super().__init__()
        self.net = f"shared.{shared.net}" if shared.net else "shared"
        self.shared, self.conventional, self.rebalancing = shared, conventional, rebalancing
        self.feature_dim = 2 * shared.feature_dim
        self.pretraining = shared.pretraining

    def forward_maps(self, images: Tensor) -> Tensor:
        """[N, C, S, S], or pairs [N, C, 2 S, S], to [N, 2 D, H, W]."""
        height, width = images.shape[2:]
        if height == width:
            maps = self.shared.forward_maps(images)
            return torch.cat([self.conventional(maps), self.rebalancing(maps)], 1)
        first = self.conventional(self.shared.forward_maps(images[:, :, :width]))
        return torch.cat([first, self.rebalancing(self.shared.forward_maps(images[:, :, width:]))], 1)


def bilateral(backbone: Backbone) -> BilateralNetwork:
    """The network with its last block twice, what lies behind the last convolution of its last stage with it.

    With pre-trained weights both blocks begin with them. Otherwise the convolutions of the second are drawn anew, with
    the spread that the built ones have.

    Args:
        backbone: a network whose stages are sequences called ``layer1``, ``layer2`` and so on, as those of residual
            networks are; it is changed.

    Raises:
        RecipeError: it has no such stages, or more behind them than the global mean.
    """
    if isinstance(backbone, BilateralNetwork):
        raise RecipeError("doubles the last block of a network, and this one has it twice already")
    if backbone.experts > 1:
        raise RecipeError(f"doubles the last block of one network, and this one has {backbone.experts} experts")
    if not backbone.spatial:
        raise RecipeError("joins maps before the global mean, and this network has none or does more behind them")
    net: Any = backbone.get_submodule(backbone.net) if backbone.net else backbone
    name = type(net).__name__
    stages = [module for name, module in net.named_children() if _STAGE.fullmatch(name)]
    if not stages or not isinstance(stages[-1], nn.Sequential):
        raise RecipeError(
            f"doubles the last block of a residual network's last stage (layer1, layer2, ...), and {name} has no such "
            "stages; take a ResNet or a ResNeXt"
        )
    stage = stages[-1]
    norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms or norms[-1].num_features != backbone.feature_dim:
        raise RecipeError(f"cannot double the last block of {name}, which has layers behind its last stage")
    last = max(i for i, each in enumerate(stage) if any(isinstance(m, nn.Conv2d) for m in each.modules()))
    block = stage[last] if last == len(stage) - 1 else stage[last:]
    del stage[last:]
    other = copy.deepcopy(block)
    if backbone.pretraining is None:
        _draw(other)
    return BilateralNetwork(backbone, block, other)


@torch.no_grad()
def _draw(block: nn.Module) -> None:
    """Draw the weights of a block's layers anew, normal and as spread as they are; norms and biases stay."""
    for parameter in block.parameters():
        if parameter.dim() > 1 and not parameter.is_meta:
            parameter.normal_(0, float(parameter.std()))
