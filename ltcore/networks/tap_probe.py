"""What a network's modules allow, found out by running it on the meta device: shapes without values."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ltcore.contract.backbone import Backbone, TapFunction
from ltcore.errors import RecipeError

#: What a plain mean over height and width is made of; norms, convolutions and attention are not.
_PLAIN_MEAN = {"mean", "_adaptive_avg_pool2d", "view", "_unsafe_view", "squeeze", "clone"}

_ROWS = 2


@dataclass(frozen=True)
class Findings:
    """What `probe` found.

    Attributes:
        inner: the modules that can be taps, in forward order, with the shape of a row.
        maps: shape of a row of what `forward_maps` returns; empty where shapes alone do not carry through the network.
        plain_mean: whether a row is [D, H, W], and `pool` its mean over H and W.
        after_pool: the modules of `pool` that do more than that, in forward order, by their names in the network.
    """

    inner: dict[str, tuple[int, ...]]
    maps: tuple[int, ...]
    plain_mean: bool
    after_pool: tuple[str, ...]


def probe(backbone: Backbone, candidates: Iterable[str], input_size: tuple[int, int, int]) -> Findings:
    """Try modules as taps.

    A tap is met exactly once in a forward pass. Its output is a tensor with one row per sample, which nothing after it
    writes over (a method may hold it). Rows can be appended to it, and come out of the pool again.

    Args:
        backbone: the network, on any device; it is not changed.
        candidates: names of its modules, as `Backbone.module_at` knows them.
        input_size: C, H, W of an image.
    """
    twin = _on_meta(backbone)
    try:
        with torch.no_grad(), torch.device("meta"):
            images = torch.empty(_ROWS, *input_size)
            seen, maps = _watch(twin, candidates, images)
            plain_mean, after_pool = _pool_is_mean(twin, maps)
            if not _carries(twin, seen, images):
                seen = {tap: shape for tap, shape in seen.items() if _carries(twin, [tap], images)}
    except Exception:  # a model that shapes alone do not carry through: nothing can be told
        return Findings({}, (), False, ())
    return Findings(seen, tuple(maps.shape[1:]), plain_mean, after_pool)


def tap_shapes(backbone: Backbone, input_size: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Shape of one row at every tap, in forward order.

    Args:
        backbone: the network, on any device.
        input_size: C, H, W of an image.

    Raises:
        RecipeError: the network does not take such images.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def note(tap: str) -> TapFunction:
        def look(x: Tensor) -> Tensor:
            shapes[tap] = tuple(x.shape[1:])
            return x

        return look

    try:
        with torch.no_grad(), torch.device("meta"):
            _on_meta(backbone).run(torch.empty(_ROWS, *input_size), at={tap: note(tap) for tap in backbone.taps})
    except Exception as error:
        size = " x ".join(str(length) for length in input_size)
        raise RecipeError(
            f"the backbone does not take images of {size} ({type(error).__name__}: {error}); name another size"
        ) from error
    return shapes


def _on_meta(backbone: Backbone) -> Backbone:
    """A copy in eval mode without values, made without copying any."""
    memo: dict[int, Any] = {}
    for parameter in backbone.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in backbone.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(backbone, memo).eval()


def _watch(backbone: Backbone, candidates: Iterable[str], images: Tensor) -> tuple[dict[str, tuple[int, ...]], Tensor]:
    """The candidates that meet all but the last condition, in forward order, with their shapes; and the maps."""
    met: dict[str, list[tuple[Any, int]]] = {}

    def note(tap: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            version = output._version if isinstance(output, Tensor) else 0
            met.setdefault(tap, []).append((output, version))

        return hook

    handles = [backbone.module_at(tap).register_forward_hook(note(tap)) for tap in candidates]
    try:
        maps = backbone.forward_maps(images)
        backbone.pool(maps)
    finally:
        for handle in handles:
            handle.remove()
    taps = {}
    for tap, calls in met.items():
        output, version = calls[0]
        if len(calls) == 1 and isinstance(output, Tensor) and output.dim() > 2 and len(output) == _ROWS:
            if output._version == version:
                taps[tap] = tuple(output.shape[1:])
    return taps, maps


def _carries(backbone: Backbone, taps: Iterable[str], images: Tensor) -> bool:
    """Whether a row appended at each of the taps comes out of the pool."""
    taps = list(taps)
    try:
        pooled = backbone.run(images, at={tap: lambda x: torch.cat([x, x[:1]]) for tap in taps})
    except Exception:
        return False
    return len(pooled) == _ROWS + len(taps)


def _pool_is_mean(backbone: Backbone, maps: Tensor) -> tuple[bool, tuple[str, ...]]:
    """Whether the pool is the mean over height and width, and which of its modules do more."""
    started: dict[str, int] = {}
    more: list[str] = []
    with _Operations() as seen:
        handles = []
        for name, module in backbone.named_modules():
            if any(module.children()):
                continue

            def before(_module: nn.Module, _args: Any, name: str = name) -> None:
                started[name] = len(seen.names)

            def after(_module: nn.Module, _args: Any, _output: Any, name: str = name) -> None:
                if not set(seen.names[started[name] :]) <= _PLAIN_MEAN:
                    more.append(name.removeprefix(f"{backbone.net}.") if backbone.net else name)

            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        try:
            backbone.pool(maps)
        finally:
            for handle in handles:
                handle.remove()
    plain = maps.dim() == 4 and maps.shape[1] == backbone.feature_dim and set(seen.names) <= _PLAIN_MEAN
    return plain, tuple(more)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the names of the tensor operations that are run under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))
