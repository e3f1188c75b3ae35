"""The layer that takes a linear layer's place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ltcore import Mergeable
from ltcore_lora.functional import low_rank_change, low_rank_output


class LoRALinear(nn.Linear, Mergeable):
    """A linear layer plus ``scale * B A x`` for some pieces of its output; it begins as the plain layer.

    It takes the plain layer's parameters over, under the names that they had. Its own are `lora_a`, [parts * rank, in],
    uniform in +-1 / sqrt(in) as a linear layer's weights are, and `lora_b`, [parts * rows, rank], zero.

    Args:
        plain: the layer.
        rank: at least 1.
        scale: alpha / rank.
        dropout: of what the low-rank matrices are given, in training.
        parts: which pieces of the output are adapted.
        pieces: how many there are: 3 for the queries, keys and values of one layer.
    """

    def __init__(
        self,
        plain: nn.Linear,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        parts: Sequence[int] = (0,),
        pieces: int = 1,
    ) -> None:
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.scale, self.parts, self.pieces = scale, tuple(parts), pieces
        self.dropout = nn.Dropout(dropout)
        self.lora_a = nn.Parameter(plain.weight.new_empty(len(self.parts) * rank, plain.in_features))
        self.lora_b = nn.Parameter(plain.weight.new_zeros(len(self.parts) * (plain.out_features // pieces), rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.training = plain.training

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        out = list(super().forward(input).chunk(self.pieces, -1))
        added = low_rank_output(self.dropout(input), self.lora_a, self.lora_b, len(self.parts))
        for part, change in zip(self.parts, added, strict=True):
            out[part] = out[part] + self.scale * change
        return out[0] if self.pieces == 1 else torch.cat(out, -1)

    def merged(self) -> nn.Linear:
        """A plain layer with the weight ``W + scale * B A``, added in float64."""
        plain = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, self.weight.device, self.weight.dtype
        )
        change = low_rank_change(self.lora_a.double(), self.lora_b.double(), self.parts, self.pieces)
        with torch.no_grad():
            plain.weight.copy_(self.weight + self.scale * change)
            if self.bias is not None:
                plain.bias.copy_(self.bias)
        return plain.train(self.training)

    def extra_repr(self) -> str:
        """The layer's sizes, and those of what is added."""
        return f"{super().extra_repr()}, rank={self.lora_b.shape[1]}, parts={self.parts} of {self.pieces}"
