"""Backbones: the network before the classifier, with named taps; and core's own `timm` backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ltcore.errors import RecipeError, nearest
from ltcore.hookspecs import hookimpl
from ltcore.method import Method, Options

#: Applied to a tensor at a tap; returns what the rest of the network goes on with.
TapFunction = Callable[[Tensor], Tensor]


class Backbone(nn.Module):
    """Images [N, C, H, W] to pooled features [N, feature_dim].

    A subclass sets `feature_dim` and `inner_taps` and writes `forward_maps`; it may replace `pool`.

    Attributes:
        feature_dim: D, the width of the pooled features.
        inner_taps: names of submodules, in forward order, whose output is a map [N, D', H', W'] that may be changed.
        spatial: whether ``maps`` is [N, D, H, W] and `pool` its plain mean over H and W, so that a class activation
            map is the classifier's weights applied at each location.
        net: name of the attribute that holds a wrapped network, left out of the public names of its modules.
    """

    feature_dim: int
    inner_taps: tuple[str, ...] = ()
    spatial: bool = True
    net: str | None = None

    @property
    def taps(self) -> tuple[str, ...]:
        """Every place where features can be changed, in forward order."""
        return (*self.inner_taps, "maps", "pooled")

    def forward_maps(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to the maps before the global pool, [N, D, H', W']."""
        raise NotImplementedError

    def pool(self, maps: Tensor) -> Tensor:
        """Maps [N, D, H', W'] to pooled features [N, D]; global average pooling unless replaced."""
        return maps.mean((2, 3))

    def run(self, x: Tensor, start: str = "images", at: Mapping[str, TapFunction] | None = None) -> Tensor:
        """Pooled features [N, D], changed on the way by the functions given for taps.

        Args:
            x: images, or what was cached at `start`.
            start: ``images``, ``maps`` or ``pooled``.
            at: for a tap, what to apply there. It may change the number of rows.
        """
        at = at or {}
        if start == "images":
            handles = [
                self.module_at(tap).register_forward_hook(lambda _module, _args, output, change=change: change(output))
                for tap, change in at.items()
                if tap in self.inner_taps
            ]
            try:
                x = self.forward_maps(x)
            finally:
                for handle in handles:
                    handle.remove()
        if start in ("images", "maps"):
            x = at["maps"](x) if "maps" in at else x
            x = self.pool(x)
        return at["pooled"](x) if "pooled" in at else x

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, D]."""
        return self.run(images)

    def module_at(self, tap: str) -> nn.Module:
        """The submodule that an inner tap names."""
        return self.get_submodule(f"{self.net}.{tap}" if self.net else tap)


class TimmOptions(Options):
    """Options of the timm backbone."""

    model: str
    """A model name of timm, e.g. resnet50; a tag may follow (resnet50.a1_in1k)."""
    pretrained: bool = False
    """Load timm's pre-trained weights (from its hub, or the local cache)."""
    drop_path_rate: float = 0.0
    """Stochastic depth, for models that have it."""


class TimmBackbone(Backbone):
    """A timm model without its classifier."""

    net = "model"

    def __init__(self, model: Any) -> None:
        """Wrap a model made with ``num_classes=0``."""
        super().__init__()
        self.model = model
        self.feature_dim = int(getattr(model, "head_hidden_size", None) or model.num_features)
        self.inner_taps = tuple(dict.fromkeys(info["module"] for info in getattr(model, "feature_info", []) or []))
        with torch.no_grad():
            # Shapes only: where the pool is a plain mean, the last map has the classifier's width.
            self.spatial = self.feature_dim == int(model.num_features) and not hasattr(model, "pos_embed")

    def forward_maps(self, images: Tensor) -> Tensor:
        """Timm's ``forward_features``."""
        maps: Tensor = self.model.forward_features(images)
        return maps

    def pool(self, maps: Tensor) -> Tensor:
        """Timm's ``forward_head`` up to the classifier."""
        pooled: Tensor = self.model.forward_head(maps, pre_logits=True)
        return pooled


class Timm(Method):
    """Any classification model of timm as the backbone (https://github.com/huggingface/pytorch-image-models)."""

    Options = TimmOptions

    @hookimpl
    def build_backbone(self, in_channels: int) -> Backbone:
        """Make the model; on the meta device (``ltcore plan``) there are no weights to load.

        Raises:
            RecipeError: timm has no such model, or its weights could not be fetched.
        """
        import timm

        name, known = self.options.model, timm.list_models()
        if name.split(".")[0] not in known:
            raise RecipeError(f"backbone.options.model: timm has no model '{name}'{nearest(name, known)}")
        pretrained = self.options.pretrained and torch.get_default_device().type != "meta"
        arguments = {"drop_path_rate": self.options.drop_path_rate} if self.options.drop_path_rate else {}
        try:
            model = timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=in_channels, **arguments)
        except Exception as error:
            raise RecipeError(
                f"backbone.options: timm could not make '{name}': {type(error).__name__}: {error}"
                + (". Its weights come from the Hugging Face hub; is it reachable?" if pretrained else "")
            ) from error
        return TimmBackbone(model)
