"""The check `pairs`: a method beside every other one trains, or is refused by name before any data is read."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ltcore.contract.hookspecs import HOOKS
from ltcore.discovery import catalogue
from ltcore.discovery.offer import Offer
from ltcore.errors import LtcoreError, RecipeError
from ltcore.networks.tap_probe import tap_shapes
from ltcore.plan.checks import NEEDS
from ltcore.testing.parts import PARTS
from ltcore.testing.recipes import Part, compose, part_of, plainly, plan_of, with_companions
from ltcore.testing.trial import CALIBRATED, WatchedRun, train
from ltcore.testing.watch import Watch

if TYPE_CHECKING:
    from ltcore.contract.backbone import Backbone

#: What came of two installed methods.
_TRIED: dict[tuple[Offer, ...], tuple[str, str | None]] = {}
_MAPS = 3  # [D, H, W]
FOLDS = frozenset(name for name, hook in HOOKS.items() if hook.kind == "fold")


def fitted(part: Part) -> Part:
    """A method with what its recipes must mind: its network, whether it refuses to train that, and has own parameters.

    Raises:
        LtcoreError: no recipe suits it.
    """
    import tempfile
    from pathlib import Path

    refusal: LtcoreError | None = None
    networks = (False, True) if "adapt_backbone" in part.hooks else (False,)
    for transformer, fixed in itertools.product(networks, (False, True)):
        candidate = replace(part, fixed=fixed, transformer=transformer)
        try:
            plan = plan_of(compose(with_companions(candidate)))
            break
        except RecipeError as error:
            refusal = refusal or error
    else:
        assert refusal is not None
        raise refusal
    if part.role == "backbone":
        return replace(candidate, image_size=_smallest(plan.skeleton))
    if part.role is not None:
        return candidate
    with tempfile.TemporaryDirectory(prefix="ltcore-check-") as folder:
        WatchedRun(plan, Watch(), Path(folder)).assembly.start()
    own = plan.entries[part.name].method
    return replace(candidate, networks=any(True for _ in own.parameters()))


def _smallest(skeleton: Backbone) -> int:
    """8 pixels, as for the checks' own network, where that leaves the last maps more than one a side; or 16."""
    try:
        maps = tap_shapes(skeleton, (3, 8, 8))["maps"]
    except RecipeError:
        return 16
    return 8 if len(maps) == _MAPS and min(maps[1:]) > 1 else 16


@functools.cache
def installed_part(offer: Offer) -> Part | None:
    """An installed method as it is put beside others; None where it cannot be used at all, or builds data."""
    try:
        part = part_of(offer)
        return None if part.role == "data" else fitted(part)
    except Exception:
        return None


def others(part: Part) -> Iterator[Part]:
    """Every installed method that stands beside another one in a recipe, itself included; core's own are left out."""
    for offer in catalogue.offers():
        if offer.distribution == "ltcore" or offer.name in PARTS:
            continue
        other = installed_part(offer)
        if other is not None and (part.role is None or other.role is None):
            yield other


def orders(first: Part, second: Part) -> list[tuple[Part, Part]]:
    """Both orders where the order matters: where both have a hook through which records are passed on."""
    if first.name != second.name and first.hooks & second.hooks & FOLDS:
        return [(first, second), (second, first)]
    return [(first, second)]


def tried(first: Part, second: Part) -> tuple[str, str | None]:
    """`together`; two installed methods are tried once in a process, whichever of them is checked."""
    for part in (first, second):
        known = None if catalogue.is_lent(part.offer) else installed_part(part.offer)
        if known is None or known.options != part.options:
            return together(first, second)
    key = _key(first, second)
    if key not in _TRIED:
        _TRIED[key] = together(first, second)
    return _TRIED[key]


def untried(offers: Iterable[Offer]) -> list[tuple[Part, Part]]:
    """The recipes of two that checks of installed methods ask for, each once, as the first that asks has it."""
    found: dict[tuple[Offer, ...], tuple[Part, Part]] = {}
    for part in filter(None, map(installed_part, offers)):
        for other in others(part):
            for pair in orders(part, other):
                found.setdefault(_key(*pair), pair)
    return [pair for key, pair in found.items() if key not in _TRIED]


def note(first: Part, second: Part, outcome: tuple[str, str | None]) -> None:
    """Keep what came of two installed methods elsewhere; `tried` answers with it."""
    _TRIED[_key(first, second)] = outcome


def _key(first: Part, second: Part) -> tuple[Offer, ...]:
    places = (first.offer, second.offer)
    return places if len(orders(first, second)) > 1 else tuple(sorted(places, key=str))


def together(first: Part, second: Part, recipe: Mapping[str, Any] | None = None) -> tuple[str, str | None]:
    """Train two methods in one recipe.

    Returns:
        ``trained`` or ``refused``, and what is wrong with that; None where nothing is.
    """
    recipe = recipe or compose(_unique(first, second))
    # What a method needs beside it may be named in its place.
    beside = {part.name: [each.name for each in with_companions(part)[:-1]] for part in (first, second)}
    keys = [key for key in recipe["methods"] if key.removesuffix("_again") in beside]
    keys += [part.name for part in (first, second) if part.role]
    both = sorted(hook for hook in first.hooks & second.hooks if HOOKS[hook].kind == "one")
    if any(other.transformer and not _suits_one(part) for part, other in ((first, second), (second, first))):
        return "refused", None
    watch = Watch()
    try:
        with watch.alone():
            plan = plan_of(recipe)
    except RecipeError as error:
        message = plainly(error)
        # Where the network is what does not suit one of the two, the other has chosen or changed the network.
        networks = (
            {part.name for part in (first, second) if _decides_network(part)} if "backbone '" in message else set()
        )
        unnamed = [
            key
            for key in keys
            if (name := key.removesuffix("_again")) not in networks
            and not any(f"'{each}'" in message for each in (key, *beside[name]))
        ]
        if unnamed:
            return "refused", f"the refusal does not name '{unnamed[0]}': {message}"
        if not any(
            word in message for word in (*HOOKS, *NEEDS, *first.method.requires, *second.method.requires, "tap")
        ):
            return "refused", f"the refusal names no hook and no need: {message}"
        return "refused", None
    except LtcoreError as error:
        return "refused", f"it cannot be planned: {plainly(error)}"
    if both and first.role is None and second.role is None:
        return "trained", f"both answer {both[0]}, of which there can be one, and the plan went through"
    try:
        trained = train(plan, watch)
    except LtcoreError as error:
        return "refused", f"it ended when data had been read: {plainly(error)}"
    if not bool(trained.tensors[CALIBRATED].isfinite().all()):
        return "trained", "the logits that come of it are not finite"
    broken = sorted(first.method.requires & second.method.breaks | second.method.requires & first.method.breaks)
    if broken:
        return "trained", f"one needs {broken[0]}, which the other breaks, and they trained together"
    return "trained", None


def _decides_network(part: Part) -> bool:
    """Whether a recipe of the checks has another network because of a method."""
    return bool({"adapt_backbone", "build_ensemble"} & part.hooks or "experts" in part.method.requires)


@functools.cache
def _suits_one(part: Part) -> bool:
    """Whether a method can be used on the transformer that another one brings; that is no matter between the two."""
    if part.transformer or part.role is not None:
        return True
    try:
        plan_of(compose(with_companions(replace(part, transformer=True))))
    except RecipeError:
        return False
    return True


def _unique(*parts: Part) -> tuple[Part, ...]:
    """The methods with their companions, none of which stands twice."""
    found: dict[str, Part] = {}
    for part in parts:
        for each in with_companions(part)[:-1]:
            if each.name not in [p.name for p in parts]:
                found[each.name] = each
    return (*found.values(), *parts)
