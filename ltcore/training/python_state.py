"""What an object keeps in Python, beside the values of its tensors: what a replayed graph would not see change."""

from __future__ import annotations

import functools
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
    functools.partial,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    torch.Generator,
    torch.dtype,
    torch.device,
    Context,
)

#: By path, such as ``.alpha`` or ``._queue[0].weight``: a value that can be compared, of a tensor where it lies.
State = dict[str, Any]


def python_state(thing: object) -> State:
    """Everything that can be reached from an object through attributes and containers.

    Args:
        thing: a method, or a module.
    """
    found: State = {}
    _walk(thing, "", found, {})
    return found


def changes(before: State, after: State) -> list[str]:
    """Paths of what is no longer what it was, in order."""
    paths = before.keys() | after.keys()
    return sorted(path for path in paths if before.get(path, _NOTHING) != after.get(path, _NOTHING))


_NOTHING = object()


def unknown(state: State) -> list[str]:
    """Paths of what cannot be looked into, in order, such as an array of NumPy's."""
    return sorted(path for path, value in state.items() if isinstance(value, tuple) and value[0] is _NOTHING)


def _walk(thing: object, path: str, found: State, seen: dict[int, str]) -> None:
    if thing is None or isinstance(thing, bool | int | float | complex | str | bytes):
        found[path] = thing
    elif isinstance(thing, Tensor):
        wanted = thing.requires_grad and thing.is_leaf
        found[path] = ("tensor", thing.data_ptr(), tuple(thing.shape), thing.dtype, wanted)
    elif id(thing) in seen:
        found[path] = ("as", seen[id(thing)])
    else:
        seen[id(thing)] = path
        kind = type(thing).__qualname__
        if isinstance(thing, _OPAQUE):
            found[path] = (kind, id(thing))
        elif (parts := _parts(thing)) is None:
            found[path] = (_NOTHING, kind)
        else:
            found[path] = (kind,)
            for name, part in parts:
                _walk(part, path + name, found, seen)


def _parts(thing: object) -> list[tuple[str, object]] | None:
    """What an object holds, with how it is reached; None where that cannot be known."""
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


def _slots(kind: type) -> tuple[str, ...]:
    named = kind.__dict__.get("__slots__", ())
    return () if kind.__module__ == "builtins" else (named,) if isinstance(named, str) else tuple(named)
