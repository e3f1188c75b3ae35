"""What a call of a hook costs that does nothing, bound in the plan and through pluggy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pluggy
import torch
from torch import Tensor

from ltcore.bench.turns import in_turns, middle, ratio
from ltcore.contract import hookspecs
from ltcore.contract.hook import PROJECT, hookimpl
from ltcore.contract.method import Method
from ltcore.discovery.binding import Entry, Hooks, implementations
from ltcore.discovery.offer import Offer

_CALLS = 20_000


class _Empty(Method):
    values = torch.zeros(2)

    @hookimpl
    def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Nothing is computed."""
        return self.values


def measure(seconds: float) -> dict[str, Any]:
    """Microseconds that a call of ``compute_loss`` takes beyond a plain call of the method.

    Args:
        seconds: for all turns.
    """
    logits, targets, method = torch.randn(2, 2), torch.zeros(2, dtype=torch.int64), _Empty()
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(method)
    hooks = Hooks(implementations([Entry("empty", Offer("empty", "", "", ""), method)]), {})
    through_pluggy = manager.hook.compute_loss
    found = in_turns(
        {
            "plain": _per_call(lambda: method.compute_loss(logits, targets)),
            "bound": _per_call(lambda: hooks.call(hookspecs.compute_loss, logits, targets, None)),
            "pluggy": _per_call(lambda: through_pluggy(logits=logits, targets=targets, features=None, context=None)),
        },
        seconds,
    )
    bound, others = ([a - b for a, b in zip(found[way], found["plain"], strict=True)] for way in ("bound", "pluggy"))
    return {
        "microseconds": middle(bound),
        "pluggy_microseconds": middle(others),
        "ratio_to_pluggy": ratio(bound, others),
        "turns": len(bound),
    }


def _per_call(function: Callable[[], object]) -> Callable[[], float]:
    def timed() -> float:
        began = time.perf_counter()
        for _ in range(_CALLS):
            function()
        return (time.perf_counter() - began) / _CALLS * 1e6

    return timed
