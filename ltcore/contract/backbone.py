"""Backbones: the network before the classifier, with named taps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import Tensor, nn

#: Applied to a tensor at a tap; returns what the rest of the network goes on with.
TapFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pretraining:
    """How the images were prepared that a backbone's weights were trained on: the default of a recipe's ``data``.

    Attributes:
        of: the weights, as messages name them.
        mean: per channel, on the scale 0..1.
        std: per channel, on the scale 0..1.
        interpolation: how they were resized.
        notes: what the user should be told of the weights beside that, a sentence each.
    """

    of: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bilinear", "bicubic"]
    notes: tuple[str, ...] = ()


class Backbone(nn.Module):
    """Images [N, C, H, W] to pooled features [N, feature_dim].

    A subclass sets `feature_dim` and `inner_taps` and writes `forward_maps`; it may replace `pool`.

    With `experts` E above 1 the network splits into E. `forward_maps` then gives E * N rows, those of expert 0 for all
    images first, then those of expert 1, and so on. Core builds a classifier for each expert, trains all rows, and
    evaluates the mean of the experts' logits.

    Attributes:
        feature_dim: D, the width of the pooled features.
        inner_taps: names of submodules, in forward order, whose output may be changed and may get more rows. Each is
            called once per forward pass, and nothing after it writes over its output. A map [N, D', H', W'] where
            `has_maps` says so. In a network that splits, only those before the split: behind it, a module could not
            tell which expert an appended row is of.
        experts: E, into how many the network has split where its maps come out; 1 for a plain network.
        pretraining: what its weights were trained on; None where they are random. Also on the meta device.
        net: name of the attribute that holds a wrapped network, left out of the public names of its modules.
        added_by: for each parameter and buffer that an adapter has added, by its name in the module, the adapter's
            name in the recipe. Set by core.
    """

    feature_dim: int
    inner_taps: tuple[str, ...] = ()
    experts: int = 1
    pretraining: Pretraining | None = None
    net: str | None = None
    added_by: Mapping[str, str] = MappingProxyType({})

    @property
    def spatial(self) -> bool:
        """Whether ``maps`` is [N, D, H, W] and `pool` its plain mean over H and W.

        A class activation map is then the classifier's weights applied at each location.
        """
        return True

    @property
    def after_pool(self) -> tuple[str, ...]:
        """Names of the modules between the global pool and the classifier, for messages; none where `spatial`."""
        return ()

    @property
    def taps(self) -> tuple[str, ...]:
        """Every place where features can be changed, in forward order."""
        return (*self.inner_taps, "maps", "pooled")

    def has_maps(self, tap: str) -> bool:
        """Whether features at a tap are [N, D', H', W']: not pooled, no tokens, channels not last."""
        return tap != "pooled"

    def forward_maps(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to the maps before the global pool, [N, D, H', W']; [E * N, D, H', W'] with `experts` E."""
        raise NotImplementedError

    def pool(self, maps: Tensor) -> Tensor:
        """Maps [N, D, H', W'] to pooled features [N, D]; global average pooling unless replaced."""
        return maps.mean((2, 3))

    def run(self, x: Tensor, start: str = "images", at: Mapping[str, TapFunction] | None = None) -> Tensor:
        """Pooled features [N, D], changed on the way by the functions given for taps; [E * N, D] with `experts` E.

        Args:
            x: images, or rows at `start`.
            start: ``images``, ``maps`` or ``pooled``.
            at: for a tap, what to apply there. It may change the number of rows.
        """
        at = at or {}
        if start == "images":
            handles = [
                self.module_at(tap).register_forward_hook(lambda _module, _args, output, change=change: change(output))
                for tap, change in at.items()
                if tap not in ("maps", "pooled")
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
        """[N, C, H, W] to [N, D]; to [E * N, D] with `experts` E."""
        return self.run(images)

    def module_at(self, tap: str) -> nn.Module:
        """The submodule that an inner tap names."""
        return self.get_submodule(f"{self.net}.{tap}" if self.net else tap)


class Mergeable:
    """A module of an adapter that does, once training is over, what a plain module does; an `nn.Module` too.

    A trained run keeps it. Exports have the plain module in its place. So they are as fast as the network was, and
    programs that know the network can read them.
    """

    def merged(self) -> nn.Module:
        """The plain module, with values of its own; it gives the same in eval mode, up to rounding."""
        raise NotImplementedError
