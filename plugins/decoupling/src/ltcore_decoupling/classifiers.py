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
    """A trained classifier with one learnable scale a class, 1 at the start. See `scaled_logits`.

    Its parameters are ``scale`` [C] and, where the classifier goes on learning, those of ``inner``.

    Args:
        classifier: maps [N, D] to [N, C], and has ``weight`` [C, D] and ``bias`` ([C] or None) as they are applied.
        train_inner: whether its own parameters are parameters here as well; else they are buffers, which never train.
        scale_bias: whether its bias is scaled with its weights.
    """

    def __init__(self, classifier: nn.Module, train_inner: bool = False, scale_bias: bool = False) -> None:
        super().__init__()
        self.inner = copy.deepcopy(classifier) if train_inner else freeze_parameters(classifier)
        self.scale_bias = scale_bias
        weight = torch.as_tensor(self.inner.weight)
        self.scale = nn.Parameter(torch.ones(len(weight), dtype=weight.dtype, device=weight.device))

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, D] to [N, C]."""
        return scaled_logits(self.inner(pooled), self.scale, None if self.scale_bias else self._inner_bias)

    @property
    def _inner_bias(self) -> Tensor | None:
        bias: Tensor | None = getattr(self.inner, "bias", None)
        return bias

    @property
    def weight(self) -> Tensor:
        """[C, D], as applied."""
        return torch.as_tensor(self.inner.weight) * self.scale[:, None]

    @property
    def bias(self) -> Tensor | None:
        """[C], as applied."""
        bias = self._inner_bias
        return bias * self.scale if self.scale_bias and bias is not None else bias


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
