"""The classifiers that the methods build."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ltcore_decoupling.functional import cosine_logits, scaled_logits, slowed_down


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


class _Applied(nn.Module):
    """Logits and bias of a classifier in one call, since its bias may be made from its parameters."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.inner(pooled), getattr(self.inner, "bias", None)


class ScaledClassifier(nn.Module):
    """A trained classifier whose weights have one learnable scale a class, 1 at the start. See `scaled_logits`.

    Args:
        classifier: maps [N, D] to [N, C], and has ``weight`` [C, D] and ``bias`` ([C] or None) as they are applied.
        weight_lr: learning rate of its own parameters, as a share of the scales'; 0 freezes them.
    """

    def __init__(self, classifier: nn.Module, weight_lr: float = 0.0) -> None:
        super().__init__()
        self.inner = copy.deepcopy(classifier) if weight_lr else freeze_parameters(classifier)
        self.weight_lr = weight_lr
        weight = torch.as_tensor(self.inner.weight)
        self.scale = nn.Parameter(torch.ones(len(weight), dtype=weight.dtype, device=weight.device))

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, D] to [N, C]."""
        if not self.training or not self.weight_lr:
            return scaled_logits(self.inner(pooled), self.scale, self.bias)
        slowed = {
            f"inner.{name}": slowed_down(parameter, self.weight_lr) for name, parameter in self.inner.named_parameters()
        }
        logits, bias = functional_call(_Applied(self.inner), slowed, (pooled,))
        return scaled_logits(logits, self.scale, bias)

    @property
    def weight(self) -> Tensor:
        """[C, D], as applied."""
        return torch.as_tensor(self.inner.weight) * self.scale[:, None]

    @property
    def bias(self) -> Tensor | None:
        """[C], as applied: that of the classifier within."""
        bias: Tensor | None = getattr(self.inner, "bias", None)
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
