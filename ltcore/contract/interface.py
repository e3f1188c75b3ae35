"""The version of the hook interface, and what became of it since the first.

A plugin says which version it was written for: ``interface = "1.0"`` in its class. A minor version adds hooks or
arguments; a major version changes or removes some. So a plugin works with every core of its major version that is not
older than it. It also works with a later major version as long as nothing that it uses was changed.

Hooks are named as in `ltcore.contract.hookspecs`, their arguments as ``hook.argument``. Whoever changes the
specifications raises `INTERFACE` and adds the change to one of the tables here; ``docs/hooks.md`` is made from both.
"""

from __future__ import annotations

import re
from typing import NamedTuple  # not dataclasses: every start imports this file, and they import inspect

#: Core's own version; pyproject.toml says the same.
__version__ = "0.1.0"


class Version(NamedTuple):
    """A version of the hook interface; versions compare as they should."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


class Deprecation(NamedTuple):
    """Something that still works, and will not for ever.

    Attributes:
        since: the version that deprecated it.
        removed: the major version that removes it.
        instead: what its author should do, such as ``use on_epoch_start``.
    """

    since: Version
    removed: Version
    instead: str


class Change(NamedTuple):
    """Something that a plugin written for an older version cannot use as it did.

    Attributes:
        version: the major version that changed or removed it.
        instead: what its author should do.
    """

    version: Version
    instead: str


FIRST = Version(1, 0)
#: The version of this core's hooks.
INTERFACE = Version(1, 1)

#: What a version after the first has added.
ADDED: dict[str, Version] = dict.fromkeys(
    (
        "adapt_backbone",
        "adjust_logits.features",
        "after_step",
        "build_ensemble",
        "compute_gradients",
        "compute_loss.features",
        "extra_rows",
        "image_transform",
        "on_stage_end",
        "sample_weights",
    ),
    Version(1, 1),
)
#: What works and is on its way out.
DEPRECATED: dict[str, Deprecation] = {}
#: What a major version has changed or removed; a deprecated name moves here when it goes.
CHANGED: dict[str, Change] = {}


def since(name: str) -> Version:
    """The version that has brought a hook or an argument; most arguments came with their hook."""
    return ADDED.get(name) or ADDED.get(name.partition(".")[0], FIRST)


def parse(stated: object) -> Version | None:
    """What a class's ``interface`` says, or None where it is no version."""
    found = re.fullmatch(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)", stated) if isinstance(stated, str) else None
    return Version(int(found[1]), int(found[2])) if found else None


def refusal(stated: object, distribution: str) -> str | None:
    """Why a method cannot be used by this core, behind its name; None where it can.

    Args:
        stated: its class's ``interface``.
        distribution: where it comes from.
    """
    version = parse(stated)
    if version is None:
        return f'says interface = {stated!r}, which is no version "MAJOR.MINOR" such as "{INTERFACE}"; tell its author'
    if version > INTERFACE:
        return (
            f"is written for hook interface {version}, and ltcore {__version__} has {INTERFACE}. Upgrade ltcore "
            f"(pip install --upgrade ltcore), or install an older {distribution}"
        )
    return None


def spoken(name: str) -> str:
    """``hook 'x'``, or ``argument 'a' of hook 'x'``."""
    hook, _, argument = name.partition(".")
    return f"argument '{argument}' of hook '{hook}'" if argument else f"hook '{hook}'"


def broken(name: str, stated: object, distribution: str) -> str | None:
    """Why a hook or an argument cannot be used as the method does, behind its name; None where it can.

    Args:
        name: what it uses.
        stated: the interface that the method was written for.
        distribution: where it comes from.
    """
    change, version = CHANGED.get(name), parse(stated)
    if change is None or version is None or version >= change.version:
        return None
    return (
        f"is written for hook interface {version} and uses {spoken(name)}, which {change.version} has changed: "
        f"{change.instead}. Install a newer {distribution} (pip install --upgrade {distribution}), or an older ltcore"
    )
