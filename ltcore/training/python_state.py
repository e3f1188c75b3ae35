"""What an object keeps in Python, beside the values of its tensors: what a replayed graph would not see change."""

from __future__ import annotations

import functools
import random
import re
import types
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor

from ltcore.contract.context import Context

#: What is the same as long as it is the same object: nothing in it is a method's own to change.
_OPAQUE = (
    type,
    range,
    slice,
    types.BuiltinFunctionType,
    types.ModuleType,
    torch.Generator,
    torch.dtype,
    torch.device,
    Context,
)

#: Classes of these modules, and functions in them, hold nothing of a method's.
_OF_LIBRARIES = re.compile(r"(torch|torchvision|timm|builtins|ltcore\.contract)\b")

#: By path, such as ``.alpha`` or ``._queue[0].weight``: a value that can be compared, of a tensor where it lies.
State = dict[str, Any]


def python_state(thing: object, kind: str = "cpu") -> State:
    """Everything that can be reached from an object through attributes and containers.

    Args:
        thing: a method, or a module.
        kind: of the device that a step is computed on. Python may read the values of a tensor on another one, so that
            it counts how often it was written.
    """
    found: State = {}
    tensors: dict[str, Tensor] = {}
    _walk(thing, "", found, {}, tensors)
    elsewhere = {path: each for path, each in tensors.items() if each.device.type != kind and not each.is_inference()}
    found |= {f"{path} on the {each.device.type}": each._version for path, each in elsewhere.items()}
    for made_of in type(thing).__mro__:
        if not _OF_LIBRARIES.match(made_of.__module__):
            for name, value in vars(made_of).items():
                if not name.startswith("__") and isinstance(
                    value, list | dict | set | bool | int | float | str | Tensor
                ):
                    _walk(value, f".{made_of.__qualname__}.{name}", found, {}, {})
    return found


def tensors_in(thing: object) -> dict[str, Tensor]:
    """The tensors among what `python_state` lists, by their paths."""
    tensors: dict[str, Tensor] = {}
    _walk(thing, "", {}, {}, tensors)
    return tensors


def changes(before: State, after: State) -> list[str]:
    """Paths of what is no longer what it was, in order."""
    paths = before.keys() | after.keys()
    return sorted(path for path in paths if before.get(path, _NOTHING) != after.get(path, _NOTHING))


_NOTHING = object()


class _Same:
    """Equal to itself alone; it keeps the object, so that no other one can lie where it lay."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


def unknown(state: State) -> list[str]:
    """Paths of what cannot be looked into, in order, such as an array of NumPy's."""
    return sorted(path for path, value in state.items() if isinstance(value, tuple) and value[0] is _NOTHING)


def _walk(thing: object, path: str, found: State, seen: dict[int, str], tensors: dict[str, Tensor]) -> None:
    if thing is None or isinstance(thing, bool | int | float | complex | str | bytes | _Same):
        found[path] = thing
    elif isinstance(thing, Tensor):
        wanted = thing.requires_grad and thing.is_leaf
        tensors[path] = thing
        strides = thing.stride() if thing.layout == torch.strided else ()
        found[path] = ("tensor", thing.data_ptr(), tuple(thing.shape), strides, thing.dtype, wanted)
    elif id(thing) in seen:
        found[path] = ("as", seen[id(thing)])
    else:
        seen[id(thing)] = path
        kind = type(thing).__qualname__
        if isinstance(thing, _OPAQUE):
            found[path] = (kind, _Same(thing))
        elif (parts := _parts(thing)) is None:
            found[path] = (_NOTHING, kind)
        else:
            found[path] = (kind,)
            for name, part in parts:
                _walk(part, path + name, found, seen, tensors)


def _parts(thing: object) -> list[tuple[str, object]] | None:
    """What an object holds, with how it is reached; None where that cannot be known."""
    if isinstance(thing, random.Random):
        return None
    if isinstance(thing, types.MethodType):
        return [(".__func__", thing.__func__), (".__self__", thing.__self__)]
    if isinstance(thing, functools.partial):
        return [(".func", thing.func), (".args", thing.args), (".keywords", thing.keywords)]
    if isinstance(thing, types.FunctionType):
        own_function: list[tuple[str, object]] = [("", _Same(thing))]
        if _OF_LIBRARIES.match(thing.__module__ or ""):
            return own_function
        inner = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
        return [*own_function, *((f".{name}", _content(cell)) for name, cell in inner)]
    if isinstance(thing, Mapping):
        return [(f"[{key!r}]", value) for key, value in thing.items()]
    if isinstance(thing, Set):
        return [(f"[{each!r}]", None) for each in sorted(thing, key=repr)]
    inside: list[tuple[str, object]] = []
    if isinstance(thing, list | tuple):
        inside = [(f"[{number}]", each) for number, each in enumerate(thing)]
    slots = {name for kind in type(thing).__mro__ for name in _slots(kind) if hasattr(thing, name)}
    own = {**getattr(thing, "__dict__", {}), **{name: getattr(thing, name) for name in slots}}
    if not hasattr(thing, "__dict__") and not slots and not isinstance(thing, list | tuple):
        return None
    return inside + [(f".{name}", value) for name, value in own.items()]


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # nothing has been put there yet
        return None


def _slots(kind: type) -> tuple[str, ...]:
    named = kind.__dict__.get("__slots__", ())
    return () if kind.__module__ == "builtins" else (named,) if isinstance(named, str) else tuple(named)
