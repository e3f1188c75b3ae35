"""The check `row_order`: the same training with the rows of every batch in another order, and draws that follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ltcore.contract.records import Batch, Features
from ltcore.testing.inspecting import Call
from ltcore.testing.parts import new_order
from ltcore.testing.trial import CALIBRATED, Trained

#: Functions whose numbers do not depend on what they are given, so that they can follow the rows.
_DRAWS = frozenset(
    {torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like, torch.randint_like}
    | {Tensor.uniform_, Tensor.normal_, Tensor.random_, Tensor.exponential_}
)
#: Those whose numbers do.
_OTHERS = frozenset(
    {torch.bernoulli, torch.multinomial, torch.normal, torch.poisson, functional.dropout}
    | {Tensor.bernoulli, Tensor.bernoulli_, Tensor.multinomial}
)
#: Sums in another order round differently; a few steps of training make that larger.
_TOLERANCE = 1e-2


class Follow:
    """Lets what a method draws for each row of a batch follow the row to its new place.

    Attributes:
        beyond: draws that cannot follow, because they belong to no row.
    """

    def __init__(self) -> None:
        self.beyond: set[str] = set()

    @contextmanager
    def __call__(self, call: Call) -> Iterator[None]:
        """Around a hook's call."""
        given = next(iter(call.values), None)
        if not call.in_step or not isinstance(given, Batch | Features | Tensor):
            yield
            return
        rows = len(given if isinstance(given, Tensor) else given.targets)
        with _Following(rows, self.beyond):
            yield


class _Following(TorchFunctionMode):
    def __init__(self, rows: int, beyond: set[str]) -> None:
        super().__init__()
        self._order, self._beyond = new_order(rows), beyond

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = function(*args, **(kwargs or {}))
        if function in _OTHERS:
            self._beyond.add(function.__name__)
        if function not in _DRAWS or drawn.numel() <= 1:
            return drawn
        rows = len(self._order)
        if not drawn.ndim or len(drawn) != rows:
            self._beyond.add(f"{function.__name__} {list(drawn.shape)}")
            return drawn
        order = self._order.to(drawn.device)
        followed = drawn[order]
        if function is torch.randperm or (function is torch.randint and rows in args):
            followed = order.argsort()[followed]  # they are rows themselves
        return drawn.copy_(followed.clone())


def difference(trained: Trained, reordered: Trained) -> str | None:
    """What differs by more than rounding, in words."""
    for (stage, epoch, mine), (_, _, theirs) in zip(trained.losses, reordered.losses, strict=True):
        if not abs(mine - theirs) <= _TOLERANCE * max(1.0, abs(mine)):
            return f"the mean loss of stage '{stage}', epoch {epoch + 1}: {mine:.6g} and {theirs:.6g}"
    logits = trained.tensors[CALIBRATED]
    off = float((logits - reordered.tensors[CALIBRATED]).abs().max())
    if not off <= _TOLERANCE * max(1.0, float(logits.abs().max())):
        return f"{CALIBRATED}, by {off:.3g}"
    return None
