"""The rows of a batch on their way through the backbone, where several processes each compute a part of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ltcore import ranks
from ltcore.seeding import derive_seed

#: The states of torch's global generators.
States = tuple[Tensor, ...]


def states(device: torch.device) -> States:
    """Those of the CPU and, where the rows are on a GPU, of that one."""
    found = (torch.get_rng_state(),)
    return (*found, torch.cuda.get_rng_state(device)) if device.type == "cuda" else found


def restore(found: States, device: torch.device) -> None:
    """Set the global generators to what `states` gave."""
    torch.set_rng_state(found[0])
    if len(found) > 1:
        torch.cuda.set_rng_state(found[1], device)


def seed(number: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and, where the rows are on a GPU, of that one."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


class Shares:
    """One batch, from the images to the last tap.

    While the backbone works, torch's global generator gives each process its own numbers, as dropout wants them. Where
    the rows of all are joined it gives every process the same ones, so that methods stay alike in all of them.

    Args:
        experts: how many the network has.
        device: where the rows are.
    """

    def __init__(self, experts: int, device: torch.device) -> None:
        self._experts, self._device = experts, device
        self._rows = 0
        self._seed, self._visits = torch.initial_seed(), 0
        self._common: States = ()

    def own(self, rows: Tensor) -> Tensor:
        """This process's part of the rows [R, ...], with which the backbone goes on."""
        self._rows = len(rows)
        self._common = states(self._device)
        seed(derive_seed("rank", self._seed, ranks.rank(), self._visits), self._device)
        self._visits += 1
        return rows[ranks.part(len(rows))]

    def joined(self, own: Tensor) -> Tensor:
        """The rows of all processes, of which this one has `own`; where the network has split, expert by expert."""
        restore(self._common, self._device)
        split = self._experts > 1 and len(own) == self._experts * len(range(self._rows)[ranks.part(self._rows)])
        return ranks.joined(own, self._rows, self._experts if split else 1)
