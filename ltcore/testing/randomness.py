"""The random states that a whole process shares, and whether somebody touched them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

TorchState = Literal["free", "drawn", "dropout"]
_SEED = 20260713
_DROPOUT = frozenset(
    getattr(functional, name)
    for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
) | {functional.scaled_dot_product_attention}
_CHANGE = (
    "draw with `generator=context.generator`, which core seeds for the method, stage, epoch and step; a sampler, with "
    "the generator that `draw` is given"
)


class GlobalStates:
    """Python's, NumPy's and torch's."""

    @contextmanager
    def fixed(self, torch_state: TorchState) -> Iterator[list[tuple[str, str]]]:
        """Python's and NumPy's states the same each time, and restored at the end.

        Args:
            torch_state: what may be done with torch's: anything (``free``), drawing, as core has seeded it for the
                hook and modules are initialised with it (``drawn``), or dropout alone (``dropout``).

        Yields:
            A list that holds, behind the block, what was done and what to change.
        """
        used: list[tuple[str, str]] = []
        python, numpy = random.getstate(), np.random.get_state(legacy=False)
        random.seed(_SEED)
        np.random.seed(_SEED)
        before = random.getstate(), _of_numpy()
        dropout = _Dropout()
        seed, expected = torch.initial_seed(), torch.get_rng_state()
        try:
            with dropout:
                yield used
        finally:
            now = random.getstate(), _of_numpy()
            random.setstate(python)
            np.random.set_state(numpy)
        names = ("Python's global random state (module random)", "NumPy's global random state (numpy.random)")
        for name, mine, theirs in zip(names, before, now, strict=True):
            if mine != theirs:
                used.append((f"uses {name}", _CHANGE))
        if torch_state == "free":
            return
        if torch.initial_seed() != seed:
            used.append(("seeds torch's global generator (torch.manual_seed)", _CHANGE))
        elif torch_state == "dropout" and not torch.equal(torch.get_rng_state(), dropout.expected(expected)):
            used.append(("draws from torch's global generator in a step", _CHANGE))


class _Dropout(TorchFunctionMode):
    """Lets dropout draw from torch's global generator, which is where it has to draw from."""

    def __init__(self) -> None:
        super().__init__()
        self._allowed: list[tuple[torch.Tensor, torch.Tensor]] = []

    def expected(self, start: torch.Tensor) -> torch.Tensor:
        """The state that there should be, if only dropout has drawn since `start`."""
        for before, after in self._allowed:
            if torch.equal(before, start):
                start = after
        return start

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in _DROPOUT:
            return function(*args, **(kwargs or {}))
        before = torch.get_rng_state()
        returned = function(*args, **(kwargs or {}))
        self._allowed.append((before, torch.get_rng_state()))
        return returned


def _of_numpy() -> tuple[bytes, int]:
    state: Any = np.random.get_state(legacy=False)
    return state["state"]["key"].tobytes(), state["state"]["pos"]
