"""How several answers to one hook compose: the rule of each kind, written once.

A rule takes the hook's bound calls in the recipe's order, each with its method. It gives one function of the hook's
values. With no call it gives the default. This is core's own for ``one``, what came in for ``fold``, None for
``product``, no terms for ``sum``, and no answers for ``own``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ltcore.errors import PluginError

if TYPE_CHECKING:
    from ltcore.contract.hook import Hook

Call = Callable[..., Any]


class Owner(Protocol):
    """Whose a call is (`ltcore.discovery.binding.Entry`)."""

    @property
    def key(self) -> str:
        """Its name in the recipe."""

    @property
    def whose(self) -> str:
        """How messages name it."""

    @property
    def method(self) -> Any:
        """The method."""


Calls = Sequence[tuple[Owner, Call]]


class ForEach:
    """A hook's value that differs from method to method, for kind ``own``.

    Args:
        of: the value for a method, by its name in the recipe.
    """

    def __init__(self, of: Callable[[str], Any]) -> None:
        self.of = of


def compose(hook: Hook, calls: Calls, default: Call, weights: Mapping[str, float]) -> Call:
    """One function of a hook's values.

    Args:
        hook: the hook.
        calls: whose they are, and functions of the hook's values.
        default: what core does where no method answers a hook of kind ``one``.
        weights: ``method/term`` -> weight of a term of kind ``sum``; 1 where it is not named.
    """
    functions = [call for _, call in calls]
    if hook.kind == "one":
        return functions[0] if functions else default
    if hook.kind == "sum":
        return _sum(hook, calls, weights)
    if hook.kind == "own":
        return _own(calls)
    return {"fold": _fold, "product": _product, "all": _all}[hook.kind](functions)


def _fold(functions: Sequence[Call]) -> Call:
    def fold(record: Any, *others: Any) -> Any:
        for function in functions:
            record = function(record, *others)
        return record

    return fold


def _product(functions: Sequence[Call]) -> Call:
    def product(*values: Any) -> Any:
        result = None
        for function in functions:
            factor = function(*values)
            if factor is not None:
                result = factor if result is None else result * factor
        return result

    return product


def _all(functions: Sequence[Call]) -> Call:
    def every(*values: Any) -> None:
        for function in functions:
            function(*values)

    return every


def _own(calls: Calls) -> Call:
    def answers(*values: Any) -> dict[str, Any]:
        found = {
            owner.key: call(*(value.of(owner.key) if isinstance(value, ForEach) else value for value in values))
            for owner, call in calls
        }
        return {key: answer for key, answer in found.items() if answer is not None}

    return answers


def _sum(hook: Hook, calls: Calls, weights: Mapping[str, float]) -> Call:
    def terms(*values: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        at_taps = getattr(values[0], "losses", {}) if values else {}  # of features, `Features.with_losses`
        for entry, call in calls:
            made, returned = at_taps.get(entry.key, {}), call(*values)
            declared = getattr(entry.method, hook.declared_in)
            if sorted([*made, *returned]) != sorted(declared):
                at_tap = f", and {sorted(made)} with its features" if made else ""
                raise PluginError(
                    f"{entry.whose} declares the {hook.name.replace('_', ' ')} {sorted(declared)} "
                    f"and returned {sorted(returned)}{at_tap}; tell its author"
                )
            for name, value in ({**made, **returned} if made else returned).items():
                full = f"{entry.key}/{name}"
                if getattr(value, "ndim", None) != 0:
                    raise PluginError(
                        f"{entry.whose}: '{name}' of {hook.name} is not a 0-d tensor: core weighs and adds what the "
                        "method has reduced; tell its author"
                    )
                found[full] = value * weights.get(full, 1.0)
        return found

    return terms
