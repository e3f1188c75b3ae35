"""Optimisers without the import of PyTorch's compiler, where nothing else needs that.

The first group of parameters and the first step import ``torch._dynamo`` (900 modules), only to tell it where a graph
that it traces must end. Where nothing is traced, a run saves this import: more time than ``import torch`` takes, and
155 MB. Once the compiler is imported, everything is as PyTorch has it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

#: PyTorch's private names. Where another version lacks one, the compiler is imported, and nothing else happens.
_COMPILER, _DISABLED, _STEP = "torch._dynamo", "__dynamo_disable", "_use_grad"
_METHODS = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def spare_the_compiler(optimizer: Callable[..., Any]) -> None:
    """Let a class of optimisers be used without the compiler's import; call it before one is built.

    Args:
        optimizer: a subclass of ``torch.optim.Optimizer``; anything else is left alone.
    """
    if _COMPILER in sys.modules or not isinstance(optimizer, type) or not issubclass(optimizer, torch.optim.Optimizer):
        return
    for name in _METHODS:
        plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if plain is not None and not hasattr(plain, _DISABLED):
            setattr(plain, _DISABLED, plain)  # where the wrapper looks for what the compiler would give
    for kind in optimizer.__mro__:
        step = kind.__dict__.get("step")
        if getattr(getattr(step, "__code__", None), "co_name", "") == _STEP and hasattr(step, "__wrapped__"):
            kind.step = _spared(step)  # type: ignore[attr-defined]


def _spared(step: Any) -> Callable[..., Any]:
    """A step that does what PyTorch's does but for telling the compiler; once that is there, PyTorch's own."""
    plain = step.__wrapped__

    @functools.wraps(plain)
    def spared(self: Any, *arguments: Any, **named: Any) -> Any:
        if _COMPILER in sys.modules:
            return step(self, *arguments, **named)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return plain(self, *arguments, **named)

    return spared
