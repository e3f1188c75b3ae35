"""How a hook is declared: one declaration, which binding, plan, checks, trace, tests and docs read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pluggy

PROJECT = "ltcore"
hookimpl = pluggy.HookimplMarker(PROJECT)
_hookspec = pluggy.HookspecMarker(PROJECT)

Kind = Literal["one", "fold", "product", "sum", "all", "own"]
Moment = Literal["setup", "run", "stage", "epoch", "step", "end"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Default:
    """What core does where no method answers a hook of kind ``one``.

    Attributes:
        text: what it is, for the plan.
        answer: takes any of the hook's arguments by name, as an implementation does.
    """

    text: str
    answer: Callable[..., Any]


@dataclass(frozen=True)
class Hook:
    """A named point where methods take part.

    Attributes:
        name: its name.
        kind: how several answers compose; the rules are in `ltcore.discovery.kinds`.
        called: ``setup`` once before the methods are made, ``run`` once before the first stage, or ``end`` once after
            the last one. ``stage`` and ``epoch`` are at their beginning or end, and ``step`` in each step. There a
            method's randomness is seeded per step and shared by its hooks.
        arguments: names of its arguments, in order.
        classification: whether a stage without classification leaves it out.
        may_be_none: whether None is an answer, and not a forgotten return.
        acts: for kind ``one``, what a method does that answers it; for the message about two that do.
        default: for kind ``one``, what core does where no method answers.
        declared_in: for kind ``sum``, the attribute of a method that names its terms.
        writes: whether a method may write into what the stage trains, and into statistics that learn.
        by_tap: whether a method answers at its tap, so that there is a fold for each tap.
        problem: says what is wrong with an answer, given the answer and the call's values; None where nothing is.
    """

    name: str
    kind: Kind
    called: Moment
    arguments: tuple[str, ...]
    classification: bool = False
    may_be_none: bool = False
    acts: str = ""
    default: Default | None = None
    declared_in: str = ""
    writes: bool = False
    by_tap: bool = False
    problem: Callable[..., str | None] | None = None

    @property
    def in_stages(self) -> bool:
        """Whether stages call it."""
        return self.called in ("stage", "epoch", "step")

    def is_called_in(self, classification: bool) -> bool:
        """Whether a stage with or without classification calls it."""
        return self.in_stages and (classification or not self.classification)


#: Every hook by name, in the order in which a run meets them.
HOOKS: dict[str, Hook] = {}


def hook(kind: Kind, called: Moment, **more: Any) -> Callable[[F], F]:
    """Declare a hook: its kind, when it is called, and what else `Hook` has fields for.

    Args:
        kind: how several answers compose.
        called: when it is called.
        more: further fields of `Hook`.
    """

    def declare(function: F) -> F:
        name = function.__name__
        HOOKS[name] = Hook(name, kind, called, tuple(inspect.signature(function).parameters), **more)
        return _hookspec(function)

    return declare
