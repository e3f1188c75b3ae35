"""The classifiers that the methods build."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ltcore_decoupling.functional import cosine_logits, scaled_logits


def freeze_parameters(module: nn.Module) -> nn.Module:
    """A copy of a module in which every parameter is a buffer: saved and moved as before, and never trained.

    Args:
        module: any module, submodules included; it is left alone.

    Returns:
        The copy, with the same ``state_dict`` keys and no parameters.
    """
    frozen = copy.deepcopy(module)
    for part in frozen.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            del part._parameters[name]
            part.register_buffer(name, parameter.detach().clone())
    return frozen


class ScaledClassifier(nn.Module):
    """A frozen classifier whose weights have one learnable scale a class, 1 at the start. See `scaled_logits`.

    Args:
        classifier: maps [N, D] to [N, C], and has ``weight`` [C, D] and ``bias`` ([C] or None) as they are applied.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.frozen = freeze_parameters(classifier)
        weight = torch.as_tensor(self.frozen.weight)
        self.scale = nn.Parameter(torch.ones(len(weight), dtype=weight.dtype, device=weight.device))

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, D] to [N, C]."""
        return scaled_logits(self.frozen(pooled), self.scale, self.bias)

    @property
    def weight(self) -> Tensor:
        """[C, D], as applied."""
        return torch.as_tensor(self.frozen.weight) * self.scale[:, None]

    @property
    def bias(self) -> Tensor | None:
        """[C], as applied: that of the frozen classifier."""
        bias: Tensor | None = getattr(self.frozen, "bias", None)
        return bias


class CosineClassifier(nn.Module):
    """Cosines of the features with a direction a class, times a scale; no bias. See `cosine_logits`.

    Args:
        directions: [C, D], rows of norm 1.
        scale: what the cosines are multiplied with.
    """

    weight: Tensor
    bias: None = None

    def __init__(self, directions: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", scale * directions)

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, D] to [N, C]."""
        return cosine_logits(pooled.to(self.weight.dtype), self.weight)
