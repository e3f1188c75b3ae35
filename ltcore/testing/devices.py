"""Whether a step's hook computes with tensors that it made on the CPU, as no run on a GPU can; seen without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from ltcore.testing.faults import FaultNotes

_MAKING = frozenset(
    {torch.arange, torch.empty, torch.eye, torch.from_numpy, torch.full, torch.linspace, torch.ones, torch.tensor}
    | {torch.as_tensor, torch.rand, torch.randint, torch.randn, torch.randperm, torch.zeros}
)
#: What may have a tensor of the CPU among those of a GPU: an index, or a value to write.
_TAKING_BOTH = frozenset(
    {Tensor.__getitem__, Tensor.__setitem__, Tensor.to, Tensor.copy_, Tensor.new_tensor, Tensor.type_as}
)
_MARK = "_ltcore_made_on_the_cpu"
CHANGE = "make it where the rest is: `device=context.device`, `x.new_zeros(...)`, `torch.zeros_like(x)`"


class Devices(TorchFunctionMode):
    """While a hook of a step is at work: notes where it computes with what it made without saying where.

    Args:
        notes: takes the faults.
        hook: the hook.
    """

    def __init__(self, notes: FaultNotes, hook: str) -> None:
        super().__init__()
        self._notes, self._hook = notes, hook

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = function(*args, **kwargs)
        if function in _MAKING:
            told = kwargs.get("device") is not None or any(isinstance(arg, Tensor) for arg in args)
            return answer if told else self._marked(answer)
        if not isinstance(answer, Tensor):
            return answer
        if function in _TAKING_BOTH:
            stays = hasattr(args[0], _MARK) and not (
                function is Tensor.to and _says_where((*args[1:], *kwargs.values()))
            )
            return self._marked(answer) if stays else answer
        given = [each for each in _tensors((args, tuple(kwargs.values()))) if each.ndim]
        made = [each for each in given if hasattr(each, _MARK)]
        if made and len(made) < len(given):
            self.note(f"computes with a tensor {list(made[0].shape)} that it made on the CPU")
        elif made:
            return self._marked(answer)
        return answer

    def _marked(self, answer: Any) -> Any:
        if isinstance(answer, Tensor) and answer.ndim:
            setattr(answer, _MARK, True)
        return answer

    def note(self, what: str) -> None:
        """Note it, with what to change."""
        if not self._notes.quiet:
            self._notes.fault("device", f"{self._hook} {what}, and a run on a GPU fails", CHANGE)

    def look(self, answer: Any) -> None:
        """See that what the hook returns is none of it."""
        fields = vars(answer) if hasattr(answer, "__dataclass_fields__") else {"": answer}
        for name, value in fields.items():
            if any(hasattr(each, _MARK) for each in _tensors((value,))):
                self.note(f"returns {name or 'a tensor'} that it made on the CPU")


def _says_where(values: Any) -> bool:
    return any(isinstance(value, str | torch.device | Tensor) for value in values)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())
