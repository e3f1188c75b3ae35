"""What looks at each call of a watched method's hooks, and at each step; what it finds it notes as faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltcore.contract.context import RunState
    from ltcore.contract.hook import Hook
    from ltcore.contract.model import Model
    from ltcore.discovery.binding import Entry
    from ltcore.testing.faults import FaultNotes
    from ltcore.training.loop import Loop


@dataclass(frozen=True)
class Call:
    """A call of a method's hook.

    Attributes:
        entry: the method.
        hook: the hook's declaration.
        given: all of the hook's arguments by name, in its order, whether the method takes them or not.
        state: the run's state, once there is one.
    """

    entry: Entry
    hook: Hook
    given: Mapping[str, Any]
    state: RunState | None

    @property
    def values(self) -> list[Any]:
        """The arguments without the context."""
        return [value for name, value in self.given.items() if name != "context"]

    @property
    def in_step(self) -> bool:
        """Whether the hook is one of a training step."""
        return self.hook.called == "step"


class Inspector:
    """Looks on; every event is for a subclass to answer or to leave.

    Args:
        notes: takes the faults.
    """

    def __init__(self, notes: FaultNotes) -> None:
        self.notes = notes

    def before(self, call: Call) -> Any:
        """A hook is called next; what is returned comes back in `after`."""

    def after(self, call: Call, answer: Any, before: Any) -> None:
        """A hook has returned."""

    def graded(self, loop: Loop, model: Model, trained: set[str]) -> None:
        """A step's gradients are there, and the optimiser has not moved.

        Args:
            loop: the stage.
            model: the model.
            trained: names of the parameters that train.
        """

    def epoch_started(self, loop: Loop) -> None:
        """An epoch's first step comes next."""

    def step_ended(self, loop: Loop) -> None:
        """A step is done."""

    def epoch_ended(self, loop: Loop) -> None:
        """An epoch's last step is done."""

    def ended(self, model: Model) -> None:
        """The run is trained."""
