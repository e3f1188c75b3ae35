"""Recipes that suit a method: in a second stage, as the data, as the backbone, under ``calibrate``, or in several."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltcore.contract.hookspecs import HOOKS
from ltcore.contract.method import Method
from ltcore.discovery import catalogue
from ltcore.discovery.binding import Entry, implementations
from ltcore.discovery.offer import Offer
from ltcore.errors import PluginError, RecipeError
from ltcore.plan.checks import NEEDS
from ltcore.plan.plan import Plan, make_plan
from ltcore.recipe.loading import recipe_from

#: A small transformer, for adapters that refuse the checks' own network.
_TRANSFORMER = {"use": "timm", "options": {"model": "test_vit", "arguments": {"patch_size": 4, "depth": 2}}}
#: Hooks that are not called in a stage that the method is listed in.
_OUTSIDE = {name for name, hook in HOOKS.items() if not hook.in_stages}
WHERE = "the recipe of the check"


@dataclass(frozen=True, eq=False)
class Part:
    """A method as a recipe names it.

    Attributes:
        offer: what offers it.
        options: its options, as a recipe gives them.
        method: an instance, to be asked for what it requires.
        hooks: the hooks that it implements.
        fixed: whether it refuses to train the backbone.
        networks: whether it has parameters of its own.
        transformer: whether it is checked on a transformer in place of the checks' own network.
        image_size: of a backbone, height and width of the images that it is checked on.
    """

    offer: Offer
    options: Mapping[str, Any]
    method: Method
    hooks: frozenset[str]
    fixed: bool = False
    networks: bool = False
    transformer: bool = False
    image_size: int = 16

    @property
    def name(self) -> str:
        """What a recipe writes after ``use:``."""
        return self.offer.name

    @property
    def acts(self) -> bool:
        """Whether a stage can list it."""
        return bool(self.hooks - _OUTSIDE)

    @property
    def role(self) -> str | None:
        """``data`` or ``backbone`` for a method that builds one; None for others."""
        return next((role for role in ("data", "backbone") if f"build_{role}" in self.hooks), None)


def part_of(offer: Offer, options: Mapping[str, Any] | None = None) -> Part:
    """A method as it is checked: with its class's `checked_with`, and with `options` over them.

    Raises:
        LtcoreError: it cannot be made, or is wrongly marked.
    """
    kind = catalogue.load(offer)
    given = {**kind.checked_with, **(options or {})}
    method = kind(kind.Options(**given))
    found = implementations([Entry(offer.name, offer, method)])
    return Part(offer, given, method, frozenset(hook for hook, answers in found.items() if answers))


def provider_of(need: str) -> Part | None:
    """An installed method that provides what another one requires."""
    for offer in catalogue.offers():
        if offer.distribution == "ltcore":
            continue
        try:
            part = part_of(offer)
        except Exception:
            continue
        if need in part.method.provides:
            return part
    return None


def with_companions(part: Part) -> tuple[Part, ...]:
    """The method, behind others that provide what only other methods can provide."""
    needs = set(part.method.requires) - set(NEEDS) - set(part.method.provides)
    return (*(found for need in sorted(needs) if (found := provider_of(need))), part)


def compose(parts: Sequence[Part], frozen_stage: bool = False) -> dict[str, Any]:
    """A recipe with each method where it can act: after a plain stage, in a second one of two epochs.

    Args:
        parts: the methods, in the order in which they act. One that stands twice has another name the second time.
        frozen_stage: add a third stage, in which the methods' own networks and the backbone are frozen.
    """
    keys = {}
    for part in parts:
        keys[f"{part.name}_again" if part.name in keys else part.name] = part
    methods = {key: part for key, part in keys.items() if part.role is None}
    acting = [key for key, part in methods.items() if part.acts]
    trained = ["classifier"] if any(part.fixed for part in parts) else ["backbone", "classifier"]
    networks = [
        key for key in acting if methods[key].networks or "own_parameters_train" in methods[key].method.requires
    ]
    common = {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}
    stages = [
        {"name": "first", "iterations": 2, **common},
        {"name": "second", "epochs": 2, "methods": acting, "trainable": [*trained, *networks], **common},
    ]
    if frozen_stage:
        stages.append({"name": "third", "epochs": 2, "methods": acting, "trainable": ["classifier"], **common})
    recipe: dict[str, Any] = {
        "name": "check",
        "device": "cpu",
        "diagnostics": "off",
        "checkpoint_seconds": 1e9,
        "data": {"use": "check_data"},
        "backbone": copy.deepcopy(_TRANSFORMER) if any(p.transformer for p in parts) else {"use": "check_backbone"},
        "methods": {key: {"use": part.name, "options": dict(part.options)} for key, part in methods.items()},
        "stages": stages,
        "calibrate": [key for key, part in methods.items() if "post_calibrate" in part.hooks],
    }
    for part in parts:
        if part.role:
            recipe[part.role] = {"use": part.name, "options": dict(part.options)}
        if part.role == "backbone":
            recipe["data"]["options"] = {"image_size": part.image_size}
    adapters = [key for key, part in methods.items() if "adapt_backbone" in part.hooks]
    if adapters:
        recipe["backbone"]["adapt"] = adapters
    elif any("build_ensemble" in part.hooks or "experts" in part.method.requires for part in methods.values()):
        recipe["backbone"].setdefault("options", {"experts": 2})
    return recipe


def changed(
    recipe: Mapping[str, Any],
    batch_size: int | None = None,
    data: Mapping[str, Any] | None = None,
    **parts: Any,
) -> dict[str, Any]:
    """A copy of a recipe with another batch size, other options of its data or other top-level parts."""
    out = {**copy.deepcopy(dict(recipe)), **parts}
    if batch_size is not None:
        out["stages"] = [stage | {"batch_size": batch_size} for stage in out["stages"]]
    if data is not None:
        out["data"]["options"] = {**out["data"].get("options", {}), **data}
    return out


def slowly(recipe: Mapping[str, Any], rate: float = 0.0001) -> dict[str, Any]:
    """A copy of a recipe with learning rates that are no larger than `rate`."""
    out = copy.deepcopy(dict(recipe))
    for stage in out["stages"]:
        stage["optimizer"]["lr"] = min(rate, stage["optimizer"]["lr"])
    return out


def beside(recipe: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A copy of a recipe with other methods in front of its own, in every stage that has some.

    Args:
        recipe: the recipe.
        others: options of the other methods, by name.
    """
    out = copy.deepcopy(dict(recipe))
    out["methods"] = {
        **{name: {"use": name, "options": dict(given)} for name, given in others.items()},
        **out["methods"],
    }
    out["stages"] = [
        {**stage, "methods": [*others, *stage["methods"]]} if stage.get("methods") else stage for stage in out["stages"]
    ]
    return out


def plan_of(recipe: Mapping[str, Any]) -> Plan:
    """The plan of a recipe.

    Raises:
        LtcoreError: as `ltcore.plan.plan.make_plan`; the place says nothing, as nobody has written the recipe.
    """
    try:
        return make_plan(recipe_from(dict(recipe), WHERE), to_run=False)
    except (RecipeError, PluginError) as error:
        error.saying(*plainly(error).splitlines())
        raise


def plainly(error: Exception) -> str:
    """An error's message without the place in a recipe that nobody has written."""
    return str(error).replace(f"{WHERE}: ", "")
