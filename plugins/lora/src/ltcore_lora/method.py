"""The method `lora`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator
from torch import nn

from ltcore import Backbone, Method, Options, RecipeError, hookimpl
from ltcore_lora.layer import LoRALinear

Target = Literal["q", "k", "v", "proj", "mlp"]
_QKV: tuple[Target, ...] = ("q", "k", "v")


class LoRAOptions(Options):
    """Options of LoRA."""

    rank: int = Field(default=8, ge=0)
    """Rank of each change; 0 leaves the network as it is."""
    alpha: float = Field(default=8.0, gt=0.0)
    """What is added is scaled by `alpha / rank`."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of what the low-rank matrices are given that is dropped in training."""
    targets: list[Target] = Field(default=["q", "v"], min_length=1)
    """What is adapted in each block: the queries `q`, keys `k` and values `v`, the projection `proj` behind them, and
    both layers of the `mlp`."""

    @field_validator("targets")
    @classmethod
    def _once(cls, targets: list[Target]) -> list[Target]:
        if len(set(targets)) < len(targets):
            raise ValueError(f"each target stands once, not {targets}")
        return targets


class LoRA(Method[LoRAOptions]):
    """LoRA (Hu et al. 2022): low-rank matrices beside those of timm's vision transformers, see `LoRALinear`."""

    interface = "1.1"

    @hookimpl
    def adapt_backbone(self, backbone: Backbone) -> Backbone:
        """Put a `LoRALinear` in the place of each layer that `targets` names.

        Raises:
            RecipeError: the network has no such layer, or it is adapted already.
        """
        o = self.options
        if not o.rank:
            return backbone
        blocks = list(_blocks(backbone))
        if not blocks:
            raise RecipeError(
                "it adapts the attention of timm's vision transformers, and the network has none; choose one such as "
                "vit_base_patch16_224 (backbone.use: timm), or take it out of backbone.adapt"
            )
        pieces = tuple(_QKV.index(target) for target in _QKV if target in o.targets)
        for block in blocks:
            if pieces:
                self._adapt(block, "attn.qkv", pieces, 3)
            if "proj" in o.targets:
                self._adapt(block, "attn.proj")
            if "mlp" in o.targets:
                self._adapt(block, "mlp.fc1")
                self._adapt(block, "mlp.fc2")
        return backbone

    def _adapt(self, block: nn.Module, path: str, parts: tuple[int, ...] = (0,), pieces: int = 1) -> None:
        """Replace one layer of a block."""
        parent, _, name = path.rpartition(".")
        module = getattr(block, parent, None)
        layer = getattr(module, name, None)
        if isinstance(layer, LoRALinear):
            raise RecipeError(f"the blocks' {path} is adapted already; choose other targets for one of the two")
        if module is None or type(layer) is not nn.Linear:
            raise RecipeError(f"the network's blocks have no linear layer {path}; choose other targets")
        o = self.options
        setattr(module, name, LoRALinear(layer, o.rank, o.alpha / o.rank, o.dropout, parts, pieces))


def _blocks(backbone: Backbone) -> Iterator[nn.Module]:
    """The modules with an attention of timm's vision transformers, which calls its layers and not their weights."""
    from timm.models.vision_transformer import Attention  # type: ignore[attr-defined]  # timm has moved it

    for module in backbone.modules():
        if isinstance(getattr(module, "attn", None), Attention):
            yield module
