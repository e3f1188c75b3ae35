"""The checks `hooks` and `interface`."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from itertools import chain

from torch import nn

from ltcore.contract.hook import PROJECT
from ltcore.contract.hookspecs import HOOKS
from ltcore.contract.interface import INTERFACE, refusal
from ltcore.contract.method import Method
from ltcore.discovery.binding import Entry, implementations
from ltcore.discovery.deprecations import warnings
from ltcore.discovery.offer import Offer
from ltcore.errors import PluginError
from ltcore.testing.report import Check

_NEAR = 0.82
_MARK = f"{PROJECT}_impl"


def check_hooks(offer: Offer, method: Method) -> Check:
    """Every hook of a method is marked and rightly spelled, and nothing that is not marked looks like a hook."""
    marked = [name for name in _functions(type(method)) if hasattr(getattr(type(method), name), _MARK)]
    shown = ", ".join(marked) or "no marked function"
    tried = f"{shown}; and whether another function looks like a hook"
    for message, change in _problems(offer, method, marked):
        return Check("hooks", tried, "failed", message, change)
    return Check("hooks", tried, "passed")


def _problems(offer: Offer, method: Method, marked: list[str]) -> Iterator[tuple[str, str]]:
    for name in marked:
        settings = getattr(getattr(type(method), name), _MARK)
        hook = settings["specname"] or name
        if hook not in HOOKS:
            near = get_close_matches(hook, HOOKS, n=1, cutoff=0.4)
            meant = f"; did you mean '{near[0]}'?" if near else ""
            yield (
                f"'{name}' is marked as a hook, and there is no hook '{hook}'{meant}",
                f"call it '{near[0]}'" if near else f"the hooks are {', '.join(HOOKS)}",
            )
    for name in _functions(type(method)):
        if name in marked:
            continue
        near = get_close_matches(name, HOOKS, n=1, cutoff=_NEAR)
        if near:
            exactly = name == near[0]
            yield (
                f"'{name}' {'is the name of a hook' if exactly else f'looks like the hook {near[0]!r}'} and is not "
                "marked, so it is never called",
                f"mark it with @hookimpl{'' if exactly else f' and call it {near[0]}'}; or give it another name",
            )
    try:
        found = implementations([Entry(offer.name, offer, method)])
    except PluginError as error:
        yield str(error), f"take only the hook's own arguments, by name: {_signatures(marked)}"
        return
    if not any(found.values()):
        yield "it implements no hook, so it does nothing", "mark what core shall call with @hookimpl from ltcore"


def check_interface(offer: Offer, method: Method) -> Check:
    """The version of the hooks that a class states is one that this core has, and has what the method uses."""
    stated = method.interface
    tried = f"it states {stated!r}, and this core has {INTERFACE}"
    refused = refusal(stated, offer.distribution)
    if refused is None:
        found = chain(*implementations([Entry(offer.name, offer, method)]).values())
        refused = next(iter(warnings(found)), None)
    if refused is None:
        return Check("interface", tried, "passed")
    return Check("interface", tried, "failed", refused, f'set `interface = "{INTERFACE}"`, and use what it has')


def _functions(kind: type) -> list[str]:
    """Names of the functions that a class and its bases define, below what every method has."""
    ours = [base for base in kind.__mro__ if base not in Method.__mro__]
    names = dict.fromkeys(name for base in ours for name, value in vars(base).items() if callable(value))
    return [name for name in names if not hasattr(Method, name) and not hasattr(nn.Module, name)]


def _signatures(marked: list[str]) -> str:
    return "; ".join(f"{name}({', '.join(HOOKS[name].arguments)})" for name in marked if name in HOOKS)
