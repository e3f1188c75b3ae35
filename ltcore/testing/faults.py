"""What a method is found to do wrong, and what those who find it ask of whoever notes it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ltcore.contract.context import RunState


@dataclass(frozen=True)
class Fault:
    """Something that a method did.

    Attributes:
        check: the check that it fails.
        message: what happened.
        change: what to change.
    """

    check: str
    message: str
    change: str


class FaultNotes(Protocol):
    """Notes faults while a method trains; `ltcore.testing.watch.Watch` does.

    Attributes:
        state: the run's state, once there is one.
        where: the hook that is at work; empty between hooks.
        quiet: whether what happens now is not the method's doing.
    """

    state: RunState | None
    where: str
    quiet: bool

    def fault(self, check: str, message: str, change: str) -> None:
        """Note a fault, once; the arguments are those of `Fault`."""

    def aside(self) -> AbstractContextManager[None]:
        """What is done in the block is not the method's doing."""
