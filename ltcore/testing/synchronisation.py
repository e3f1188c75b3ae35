"""What would make a step wait for a GPU, seen without one; and seen by CUDA itself where there is one."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from ltcore.testing.faults import FaultNotes

#: Operators whose result's value or shape the host must know.
_OPERATORS = {
    "aten::_local_scalar_dense": "the value of a tensor (`.item()`, `int()`, `float()`, `bool()`, `if tensor:`)",
    "aten::allclose": "`torch.allclose`",
    "aten::bincount": "`torch.bincount`",
    "aten::equal": "`torch.equal`",
    "aten::masked_select": "`torch.masked_select`",
    "aten::nonzero": "`torch.nonzero` or `torch.where` with one argument",
    "aten::unique_consecutive": "`torch.unique_consecutive`",
    "aten::unique_dim": "`torch.unique`",
    "aten::_unique2": "`torch.unique`",
}
_METHODS = {Tensor.tolist: "`.tolist()`", Tensor.numpy: "`.numpy()`", Tensor.cpu: "`.cpu()`"}
CHANGE = (
    "keep it on the device: `torch.where`, a mask that multiplies, blocks of a fixed size. What is the same in "
    "the whole epoch belongs into on_epoch_start"
)


class Waits:
    """While a step's forward pass is computed: notes what waits for the device.

    Without a GPU the operators are told by their names. One that waits on the CPU only (`one_hot` with a number of
    classes) is let through.
    """

    def __init__(self, notes: FaultNotes) -> None:
        self._functions, self._operators = _Functions(notes), _Operators(notes)
        self._cuda = notes.state is not None and notes.state.device.type == "cuda"

    def __enter__(self) -> None:
        if self._cuda:
            torch.cuda.set_sync_debug_mode("error")
            return
        self._modes = ExitStack()
        self._modes.enter_context(self._operators)
        self._modes.enter_context(self._functions)

    def __exit__(self, *error: Any) -> None:
        if self._cuda:
            torch.cuda.set_sync_debug_mode("default")
            return
        self._modes.close()


def note(notes: FaultNotes, what: str) -> None:
    """A fault of the hook that is at work, or of a module that the method has built."""
    if notes.quiet:
        return
    where = notes.where or "the forward pass of what it built"
    notes.fault("synchronisation", f"{where} waits for the device in every step: {what}", CHANGE)


class _Functions(TorchFunctionMode):
    """Python functions that copy to the host."""

    def __init__(self, notes: FaultNotes) -> None:
        super().__init__()
        self.notes = notes

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _METHODS:
            note(self.notes, _METHODS[function])
        elif function is Tensor.to and "cpu" in (*args[1:], *kwargs.values()):
            note(self.notes, '`.to("cpu")`')
        elif function is Tensor.repeat_interleave or function is torch.repeat_interleave:
            repeats = kwargs.get("repeats", args[1] if len(args) > 1 else None)
            if isinstance(repeats, Tensor) and kwargs.get("output_size") is None:
                note(self.notes, "`repeat_interleave` with a tensor of repeats and without `output_size`")
        with self.notes.aside() if _only_on_cpu(function, args, kwargs) else nullcontext():
            return function(*args, **kwargs)


def _only_on_cpu(function: Any, args: Any, kwargs: Any) -> bool:
    return function is functional.one_hot and (len(args) > 1 or "num_classes" in kwargs)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operators that need the host."""

    def __init__(self, notes: FaultNotes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.notes = notes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        if name in _OPERATORS:
            note(self.notes, _OPERATORS[name])
        elif name in ("aten::index", "aten::index_put_", "aten::index_put"):
            if any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
                note(self.notes, "an index that is a mask (`x[mask]`)")
        return function(*args, **(kwargs or {}))
