"""A function of the model, called while some of its parameters and buffers are other tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.func import functional_call

if TYPE_CHECKING:
    from ltcore.contract.model import Model


class _At(nn.Module):
    """A function of the model as a module, so that its parameters and buffers can be other ones for a call."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        """What the function gives."""
        return function()


def called_with(model: Model, tensors: Mapping[str, Tensor], function: Callable[[], Tensor]) -> Tensor:
    """What the function gives while the model has other tensors.

    Args:
        model: the model.
        tensors: by their names in ``model.named_parameters()`` or ``model.named_buffers()``.
        function: uses the model.
    """
    given = {f"model.{name}": tensor for name, tensor in tensors.items()}
    value: Tensor = functional_call(_At(model), given, (function,))
    return value
