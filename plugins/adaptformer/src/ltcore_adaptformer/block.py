"""The bottleneck, and the block that has one beside its MLP."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    r"""What a block adds beside its MLP: :math:`s \, W_{up}\, \mathrm{ReLU}(W_{down}\, x)`, with biases; zero at first.

    Chen, Ge, Tong, Wang, Song, Wang, Luo, "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition",
    NeurIPS 2022, equations 3 and 4. `down` begins as a linear layer does (uniform, a = sqrt(5)), without its bias; `up`
    at zero.

    Args:
        width: D.
        inner: width of the bottleneck, at least 1.
        scale: s.
        learn_scale: whether s is a parameter.
        norm: whether x is first normalised by a layer norm of its own (LIFT, Shi et al. 2024).
        dropout: behind the ReLU, in training.
    """

    def __init__(
        self, width: int, inner: int, scale: float, learn_scale: bool = False, norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.down = nn.Linear(width, inner)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(inner, width)
        self.scale = nn.Parameter(torch.full((1,), scale)) if learn_scale else scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        inner = self.dropout(self.down(self.norm(x)).relu())
        added: Tensor = self.up(inner) * self.scale
        return added


class AdaptedBlock(nn.Module):
    """A block of timm's vision transformers with a bottleneck beside its MLP.

    It takes the block's modules over, under the names that they had. The bottleneck reads what comes to the MLP's
    branch, before its norm; neither layer scale nor stochastic depth reach what it adds.

    Args:
        block: a ``timm.models.vision_transformer.Block``.
        adapter: the bottleneck.
    """

    norm1: nn.Module
    attn: nn.Module
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module

    def __init__(self, block: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        for name, module in block.named_children():
            self.add_module(name, module)
        self.adapter = adapter
        self.training = block.training

    def forward(self, x: Tensor, **of_attention: Any) -> Tensor:
        """Tokens [N, T, D] to tokens [N, T, D]."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), **of_attention)))
        out: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))) + self.adapter(x)
        return out
