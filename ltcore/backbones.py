"""Backbones: the network before the classifier, with named taps; and core's own `timm` backbone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

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
        net: name of the attribute that holds a wrapped network, left out of the public names of its modules.
    """

    feature_dim: int
    inner_taps: tuple[str, ...] = ()
    net: str | None = None

    @property
    def spatial(self) -> bool:
        """Whether ``maps`` is [N, D, H, W] and `pool` its plain mean over H and W.

        A class activation map is then the classifier's weights applied at each location.
        """
        return True

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
    cifar_stem: bool = False
    """For images of 32 pixels: a 3 x 3 first convolution of stride 1 and no max pool (ResNets only)."""


class TimmBackbone(Backbone):
    """A timm model without its classifier."""

    net = "model"

    def __init__(self, model: Any, in_channels: int = 3) -> None:
        """Wrap a model made with ``num_classes=0`` for images of `in_channels`."""
        super().__init__()
        self.model, self._in_channels = model, in_channels
        self.feature_dim = int(getattr(model, "head_hidden_size", None) or model.num_features)
        self.inner_taps = tuple(dict.fromkeys(info["module"] for info in getattr(model, "feature_info", []) or []))

    @cached_property
    def spatial(self) -> bool:
        """Read off the shape of the maps, and off what timm computes between them and the classifier."""
        size = (getattr(self.model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[1:]
        twin = TimmBackbone(copy.deepcopy(self.model).to("meta").eval())  # no values, so it takes no time
        seen = _Operations()
        try:
            with torch.no_grad():
                maps = twin.forward_maps(torch.empty(2, self._in_channels, *size, device="meta"))
                with seen:
                    twin.pool(maps)
        except Exception:  # a model that shapes alone do not carry through: it cannot be told
            return False
        return maps.dim() == 4 and maps.shape[1] == self.feature_dim and seen.names <= _PLAIN_MEAN

    def forward_maps(self, images: Tensor) -> Tensor:
        """Timm's ``forward_features``."""
        maps: Tensor = self.model.forward_features(images)
        return maps

    def pool(self, maps: Tensor) -> Tensor:
        """Timm's ``forward_head`` up to the classifier."""
        pooled: Tensor = self.model.forward_head(maps, pre_logits=True)
        return pooled


#: What a plain mean over height and width is made of; norms, convolutions and attention are not.
_PLAIN_MEAN = {"mean", "_adaptive_avg_pool2d", "view", "_unsafe_view", "squeeze", "clone"}


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the names of the tensor operations that are run under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


class Timm(Method):
    """Any classification model of timm as the backbone (https://github.com/huggingface/pytorch-image-models)."""

    Options = TimmOptions

    @hookimpl
    def build_backbone(self, in_channels: int, image_size: int) -> Backbone:
        """Make the model; on the meta device (``ltcore plan``) there are no weights to load and no images to fit.

        Raises:
            RecipeError: timm has no such model, or its weights could not be fetched.
        """
        import timm

        name, known = self.options.model, timm.list_models()
        if name.split(".")[0] not in known:
            raise RecipeError(f"backbone.options.model: timm has no model '{name}'{nearest(name, known)}")
        real = torch.get_default_device().type != "meta"
        pretrained = self.options.pretrained and real
        arguments: dict[str, Any] = {}
        if self.options.drop_path_rate:
            arguments["drop_path_rate"] = self.options.drop_path_rate
        if real and getattr(timm.get_pretrained_cfg(name.split(".")[0]), "fixed_input_size", False):
            arguments["img_size"] = image_size  # transformers are made for one size of images
        try:
            model = timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=in_channels, **arguments)
        except Exception as error:
            raise RecipeError(
                f"backbone.options: timm could not make '{name}': {type(error).__name__}: {error}"
                + (". Its weights come from the Hugging Face hub; is it reachable?" if pretrained else "")
            ) from error
        if self.options.cifar_stem:
            _use_cifar_stem(model, name)
        return TimmBackbone(model, in_channels)


def _use_cifar_stem(model: Any, name: str) -> None:
    """Replace the first convolution and the max pool of a timm ResNet, as is usual on CIFAR."""
    first = getattr(model, "conv1", None)
    if not isinstance(first, nn.Conv2d) or not isinstance(getattr(model, "maxpool", None), nn.MaxPool2d):
        raise RecipeError(f"backbone.options.cifar_stem: '{name}' has no ResNet stem (conv1, maxpool) to replace")
    model.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
