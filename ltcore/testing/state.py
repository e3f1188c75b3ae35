"""What a method holds: the values that no checkpoint has, and where among them a tensor is."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

#: What every module has; the rest of its ``__dict__`` is its author's.
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"} | {"options", "training"}
_DEPTH = 5
_MOST_NODES = 20000


def plain_state(method: nn.Module) -> dict[str, str]:
    """What a method and its modules hold and ``state_dict`` does not, as texts that are equal where the values are."""
    return {path: _text(value, _DEPTH, set()) for path, value in _held(method)}


def path_to(method: nn.Module, wanted: Tensor) -> str | None:
    """The attribute in which a method holds a tensor that is neither a parameter nor a buffer of it."""
    for path, value in _held(method):
        for inner, found in _inside(path, value, _DEPTH, set()):
            if found is wanted:
                return inner
    return None


def held_within(method: nn.Module) -> Iterator[tuple[str, int]]:
    """How much lies in each attribute that a method holds outside of its state: values, and nodes of their graphs."""
    for path, value in _held(method):
        if isinstance(value, deque) and value.maxlen is not None:
            continue
        size = 0
        for _, found in _inside(path, value, _DEPTH, set()):
            size += 1 + (_nodes(found) if isinstance(found, Tensor) else 0)
        yield path, size


def _nodes(tensor: Tensor) -> int:
    """How many nodes the graph behind a tensor has, up to a bound."""
    seen: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn]
    while waiting and len(seen) < _MOST_NODES:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return len(seen)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal; NaN equals NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def _held(method: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, module in method.named_modules():
        dot = f"{prefix}." if prefix else ""
        for name, value in vars(module).items():
            if name not in _OF_EVERY_MODULE:
                yield dot + name, value
        for name in module._non_persistent_buffers_set:
            yield dot + name, module._buffers[name]


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", child) for key, child in value.items())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from ((f"[{index}]", child) for index, child in enumerate(value))
    elif isinstance(value, nn.Module):
        yield from ((f".{name}", child) for name, child in value.named_parameters())
        yield from ((f".{name}", child) for name, child in value.named_buffers())
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        yield from ((f".{name}", child) for name, child in vars(value).items())


def _inside(path: str, value: Any, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    yield path, value
    if depth and id(value) not in seen and not isinstance(value, Tensor):
        seen.add(id(value))
        for name, child in _children(value):
            yield from _inside(path + name, child, depth - 1, seen)


def _text(value: Any, depth: int, seen: set[int]) -> str:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous().view(-1).numpy()
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.blake2b(value.tobytes()).hexdigest()}"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if not depth or id(value) in seen:
        return type(value).__name__
    seen.add(id(value))
    return type(value).__name__ + str([(name, _text(child, depth - 1, seen)) for name, child in _children(value)])
