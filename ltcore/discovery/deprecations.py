"""What a plugin uses that is older or newer than the interface it was written for, as warnings."""

from __future__ import annotations

from collections.abc import Iterable

from ltcore.contract import interface
from ltcore.discovery.binding import Implementation
from ltcore.discovery.offer import UNPACKAGED


def warnings(answers: Iterable[Implementation]) -> list[str]:
    """One line for each distribution with methods that work, and should be brought up to date.

    Args:
        answers: all that the run's methods implement.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for answer in answers:
        offer, stated = answer.entry.offer, answer.entry.method.interface
        version = interface.parse(stated) or interface.FIRST
        written = f"method '{offer.name}', written for hook interface {version},"
        changes = found.setdefault((offer.distribution, offer.version), [])
        if version.major < interface.INTERFACE.major:
            changes.append(f"{written} still works with {interface.INTERFACE}, which has changed nothing that it uses")
        for name in (answer.hook, *(f"{answer.hook}.{argument}" for argument in answer.arguments)):
            if name in interface.DEPRECATED:
                old = interface.DEPRECATED[name]
                changes.append(
                    f"{written} uses {interface.spoken(name)}, deprecated since {old.since} and removed in "
                    f"{old.removed}: {old.instead}"
                )
            if interface.since(name) > version:
                changes.append(
                    f"{written} uses {interface.spoken(name)}, which is there since {interface.since(name)} only"
                )
    return [
        f"{distribution} {version}: {'; '.join(dict.fromkeys(changes))}. "
        + (
            f"Change {distribution}"
            if version == UNPACKAGED
            else f"Try: pip install --upgrade {distribution}; or tell its author"
        )
        for (distribution, version), changes in found.items()
        if changes
    ]
