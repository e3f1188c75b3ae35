"""A named method for a person's own images: which one it is, and what the recipe says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ltcore.contract.suited import Suited
from ltcore.discovery import catalogue
from ltcore.errors import PluginError, RecipeError

if TYPE_CHECKING:
    from ltcore.init.survey import Survey

#: The classifier that fine-tuning begins with, and the methods that `init` takes of its own accord.
PROBE = "linear_probe"
#: The rate of a stage whose classifier is fitted when it begins, and which has a step for form's sake.
NO_STEP = 1e-12
_OWN = (PROBE, "logit_adjustment")


def suited(name: str, kind: str, stage: dict[str, Any], found: Survey) -> Suited:
    """What a recipe says of a method.

    Args:
        name: a method, or a name under which a distribution says what suits one.
        kind: of the rung.
        stage: the training stage without a method.
        found: the images.

    Raises:
        PluginError: no such method is installed, or one that the stages name.
        RecipeError: it is no method to train with, or cannot work with these images.
    """
    says = _said().get(name)
    try:
        made = says(stage, found.counts) if says else _as_it_is(name, stage)
    except RecipeError as error:
        raise RecipeError(f"--method {name}: {error}") from error
    needed = dict.fromkeys([*made.methods, *(each for one in made.stages for each in one.get("methods", ()))])
    classes = {each: catalogue.load(catalogue.find(each)) for each in needed}
    if found.images["val"]:
        made = replace(made, holdout=0)
    first = made.stages[0]
    builds = any(hasattr(classes[each], "build_classifier") for each in first.get("methods", ()))
    plain = kind == "frozen" and not first["methods"]
    if (plain or (kind == "tuned" and not builds)) and PROBE in {offer.name for offer in catalogue.offers()}:
        # A classifier that fits the features as they are, and knows nothing of rarity, which is the method's to say.
        first = {**first, "methods": [PROBE, *first["methods"]]}
        if plain:  # which needs no more than that
            fitted = {"iterations": 1, "optimizer": {"name": "sgd", "lr": NO_STEP}}
            first = {key: value for key, value in first.items() if key not in ("epochs", "schedule")} | fitted
        made = replace(
            made, methods={PROBE: {"balance": "none"}, **made.methods}, stages=[first, *list(made.stages)[1:]]
        )
    return made


def all_suited() -> list[str]:
    """Names, as --method takes them, of what the installed distributions say of their methods, one for each."""
    return sorted(next(iter(names)) for names in _modules() if names)


def _said() -> dict[str, Callable[..., Suited]]:
    """What distributions say of methods, by name."""
    return {name: says for names in _modules() for name, says in names.items()}


def _modules() -> list[dict[str, Callable[..., Suited]]]:
    """``SUITED`` of each package of methods that has a module ``suited``."""
    packages = dict.fromkeys(
        offer.module.partition(".")[0]
        for offer in catalogue.offers()
        if offer.distribution != "ltcore" and offer.is_packaged
    )
    return [import_module(f"{name}.suited").SUITED for name in packages if find_spec(f"{name}.suited")]


def _as_it_is(name: str, stage: dict[str, Any]) -> Suited:
    """The stage with a method in it of which nothing is said."""
    try:
        its = catalogue.load(catalogue.find(name))
    except PluginError as error:
        raise PluginError(f"--method: {error}") from error
    builds = [hook for hook in ("build_backbone", "build_data") if hasattr(its, hook)]
    if builds:
        what = "a network, named by `backbone`" if builds[0] == "build_backbone" else "a data set, named by `data`"
        raise RecipeError(f"it is {what} in a recipe, and no method to train with")
    why = f"'{name}' with its defaults; it does not say what suits a folder of one's own."
    if hasattr(its, "post_calibrate") and not hasattr(its, "build_classifier"):
        return Suited(methods={name: {}}, stages=[{**stage, "methods": []}], calibrate=(name,), why=why)
    return Suited(methods={name: {}}, stages=[{**stage, "methods": [name]}], why=why)
