"""The method `oltr`."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from ltcore import Backbone, Context, Features, Method, Options, RecipeError, hookimpl
from ltcore_oltr.functional import attraction, repulsion
from ltcore_oltr.network import CosineNorm, OLTRNetwork


class OLTROptions(Options):
    """Options of OLTR; the defaults are those of the published code."""

    attention: bool = True
    """Whether modulated attention stands behind the maps."""
    map_size: int = Field(default=7, ge=1)
    """H = W of the network's maps, which the attention is made for: 7 for images of 224 pixels."""
    width: int | None = Field(default=None, ge=1)
    """Width of a linear layer and a ReLU between pool and memory, which train from the first stage on; none by
    default. 512 in the published networks."""
    reach: float = Field(default=10.0, gt=0.0)
    """What is divided by the distance to the nearest centroid."""
    scale: float = Field(default=16.0, gt=0.0)
    """What cosines are multiplied with to give logits."""
    centroid_weight: float = Field(default=0.01, ge=0.0)
    """What the loss of the centroids is multiplied with."""
    repulsion_weight: float = Field(default=0.01, ge=0.0)
    """What its part that keeps features away from other classes' centroids is multiplied with, beside that."""
    margin: float = Field(default=10.0, ge=0.0)
    """The mean squared distance from which on that part is 0."""


class OLTR(Method[OLTROptions]):
    """OLTR (Liu et al. 2019): modulated attention and dynamic meta-embedding, in a stage behind plain training.

    Under ``backbone.adapt`` it adds to the network what acts from its stage on, see `OLTRNetwork`.
    """

    interface = "1.1"
    checked_with: ClassVar = {"map_size": 2}
    tap = "maps"
    requires = frozenset({"earlier_stage", "hard_labels", "one_network", "own_parameters_train"})
    auxiliary = ("attraction", "repulsion")

    @hookimpl
    def adapt_backbone(self, backbone: Backbone, num_classes: int) -> OLTRNetwork:
        """The network with attention and memory, which do not act yet.

        Raises:
            RecipeError: it has experts, has OLTR's parts already, or no maps that attention could be laid over.
        """
        if backbone.experts > 1:
            raise RecipeError(f"adds to one network, and this one has {backbone.experts} experts")
        if isinstance(backbone, OLTRNetwork):
            raise RecipeError("adds attention and memory to a network, and this one has them already")
        options = self.options
        if options.attention and not backbone.has_maps("maps"):
            raise RecipeError("lays attention over maps, and this network has none; set attention: false")
        size = options.map_size if options.attention else None
        return OLTRNetwork(backbone, num_classes, size, options.width, options.reach)

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Refuse maps of another size, and a network without OLTR's parts.

        Raises:
            RecipeError: see above.
        """
        self._network(context)
        if not self.options.attention:
            return
        _, *size = context.feature_shape("maps")
        wanted = self.options.map_size
        if size != [wanted, wanted]:
            what = f"set map_size: {size[0]}" if size[0] == size[1] else "set attention: false"
            raise RecipeError(f"option map_size is {wanted}, and the network's maps are {size[0]} x {size[1]}; {what}")

    def _network(self, context: Context) -> OLTRNetwork:
        network = context.model.backbone
        if not isinstance(network, OLTRNetwork):
            raise RecipeError(
                "the backbone has no attention and no memory; name the method under the backbone too, as the last one "
                f"there: backbone: {{use: ..., adapt: [{context.name}]}}"
            )
        return network

    @hookimpl
    def build_classifier(self, feature_dim: int, num_classes: int) -> nn.Module:
        """The classifier of meta-embeddings."""
        return CosineNorm(feature_dim, num_classes, self.options.scale)

    @hookimpl
    @torch.no_grad()
    def on_stage_start(self, context: Context) -> None:
        """Let the attention act, take the class means behind it for centroids, and let the memory act.

        The coefficients begin as the classifier of the stage before. A network that has a memory at work keeps it.
        """
        network = self._network(context)
        if network.remembers:
            return
        network.enter(1)
        before = context.frozen_model().classifier
        bias = getattr(before, "bias", None)
        network.remember(
            context.class_means(), torch.as_tensor(before.weight), None if bias is None else torch.as_tensor(bias)
        )
        network.enter(2)

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        """The maps as they are, with the loss of the centroids on the direct features."""
        network, options = self._network(context), self.options
        direct = network.direct(features.features)
        with torch.autocast(direct.device.type, enabled=False):
            direct = direct.to(torch.promote_types(direct.dtype, torch.float32))
            rows = direct, network.memory.centroids, features.targets
            pull, push = attraction(*rows), repulsion(*rows, options.margin)
        weight = options.centroid_weight
        return features.with_losses(
            context.name, attraction=weight * pull, repulsion=weight * options.repulsion_weight * push
        )
