"""OLTR's network: attention behind the maps, and meta-embeddings in the place of pooled features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltcore import Backbone
from ltcore_oltr.functional import meta_embedding, modulated_attention


class ModulatedAttention(nn.Module):
    """Self-attention over locations (embedded Gaussian), weighed by a spatial attention on all of the map.

    Convolutions begin He-normal by fan out, as those of the published networks do.

    Args:
        channels: D.
        size: H = W of the maps.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.value, self.query, self.key = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1)
        for layer in (self.value, self.query, self.key, self.out):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.spatial = nn.Linear(channels * size * size, size * size)

    def forward(self, maps: Tensor) -> Tensor:
        """[N, D, H, W] to the same."""
        value, query, key = (layer(maps).flatten(2) for layer in (self.value, self.query, self.key))
        attention = (query.transpose(1, 2) @ key).softmax(2)  # [N, H W, H W]
        attended = self.out((value @ attention.transpose(1, 2)).unflatten(2, maps.shape[2:]))
        return modulated_attention(maps, attended, self.spatial(maps.flatten(1)))


class Memory(nn.Module):
    """Centroids of all classes, and the layers that read them.

    Args:
        classes: C.
        width: D.
        reach: see `meta_embedding`.
    """

    def __init__(self, classes: int, width: int, reach: float) -> None:
        super().__init__()
        self.reach = reach
        self.centroids = nn.Parameter(torch.zeros(classes, width))
        self.coefficients = nn.Linear(width, classes)
        self.selector = nn.Linear(width, width)

    def forward(self, direct: Tensor) -> Tensor:
        """Direct features [N, D] to meta-embeddings [N, D], outside of autocast: distances are lost in bf16."""
        with torch.autocast(direct.device.type, enabled=False):
            direct = direct.to(torch.promote_types(direct.dtype, torch.float32))
            return meta_embedding(direct, self.centroids, self.coefficients(direct), self.selector(direct), self.reach)


class OLTRNetwork(Backbone):
    """A network with what OLTR adds to it, of which nothing acts before the stage of OLTR begins.

    Args:
        inner: the network.
        classes: C.
        size: H = W of its maps; None for no attention.
        width: width of a linear layer and a ReLU behind the pool; None for none.
        reach: see `meta_embedding`.
    """

    phase: Tensor

    def __init__(self, inner: Backbone, classes: int, size: int | None, width: int | None, reach: float) -> None:
        super().__init__()
        self.net = f"inner.{inner.net}" if inner.net else "inner"
        self.inner = inner
        self.inner_taps, self.pretraining = inner.inner_taps, inner.pretraining
        self.attention = None if size is None else ModulatedAttention(inner.feature_dim, size)
        self.embedding = None if width is None else nn.Linear(inner.feature_dim, width)
        self.feature_dim = width or inner.feature_dim
        self.memory = Memory(classes, self.feature_dim, reach)
        # The buffer is what a checkpoint has; the number is what a step looks at, without waiting for the device.
        self.register_buffer("phase", torch.zeros((), dtype=torch.int64))
        self._phase = 0
        register: Any = self.register_load_state_dict_post_hook  # PyTorch says no types
        register(_read_phase)

    @property
    def attends(self) -> bool:
        """Whether the attention acts."""
        return self._phase >= 1

    @property
    def remembers(self) -> bool:
        """Whether pooled features are meta-embeddings."""
        return self._phase >= 2

    def enter(self, phase: int) -> None:
        """Let nothing act (0), the attention (1), or the attention and the memory (2)."""
        self.phase.fill_(phase)
        self._phase = phase

    @property
    def spatial(self) -> bool:
        """False: what is behind the pool is no linear map of the locations."""
        return False

    @property
    def after_pool(self) -> tuple[str, ...]:
        """The memory, and the layer before it."""
        return ("memory",) if self.embedding is None else ("embedding", "memory")

    def has_maps(self, tap: str) -> bool:
        """As the network."""
        return self.inner.has_maps(tap)

    def forward_maps(self, images: Tensor) -> Tensor:
        """The network's maps, with attention once that acts."""
        maps = self.inner.forward_maps(images)
        if self.attention is not None and self.attends:
            maps = self.attention(maps)
        return maps

    def direct(self, maps: Tensor) -> Tensor:
        """Direct features [N, D] of maps: the network's pooled ones, through the layer behind them if there is one."""
        pooled = self.inner.pool(maps)
        return pooled if self.embedding is None else F.relu(self.embedding(pooled))

    def pool(self, maps: Tensor) -> Tensor:
        """Direct features, or the meta-embeddings of them."""
        direct = self.direct(maps)
        return self.memory(direct) if self.remembers else direct

    @torch.no_grad()
    def remember(self, centroids: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """Begin with class means [C, D], and with the classifier [C, D], [C] that was trained on direct features."""
        self.memory.centroids.copy_(centroids)
        self.memory.coefficients.weight.copy_(weight)
        if bias is None:
            self.memory.coefficients.bias.zero_()
        else:
            self.memory.coefficients.bias.copy_(bias)


def _read_phase(network: OLTRNetwork, _incompatible: Any) -> None:
    network._phase = int(network.phase)


class CosineNorm(nn.Module):
    """A last layer for features that are squashed already: 16 times their product with unit weights, no bias.

    Args:
        width: D.
        classes: C.
        scale: 16 in the code.
    """

    bias: None = None

    def __init__(self, width: int, classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.directions = nn.Parameter(torch.empty(classes, width))
        nn.init.uniform_(self.directions, -1 / math.sqrt(width), 1 / math.sqrt(width))

    @property
    def weight(self) -> Tensor:
        """[C, D], as applied."""
        return self.scale * F.normalize(self.directions, dim=1)

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, D] to [N, C], outside of autocast."""
        with torch.autocast(pooled.device.type, enabled=False):
            return F.linear(pooled.to(self.directions.dtype), self.weight)
