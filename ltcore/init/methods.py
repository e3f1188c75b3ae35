"""A named method for a person's own images: which one it is, and what the recipe says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ltcore.contract.suited import Suited
from ltcore.discovery import catalogue
from ltcore.discovery.offer import Offer
from ltcore.errors import PluginError, RecipeError, listed

if TYPE_CHECKING:
    from ltcore.contract.method import Method
    from ltcore.init.survey import Survey

#: The classifier that fine-tuning begins with, and the methods that `init` takes of its own accord.
PROBE = "linear_probe"
#: The rate of a stage whose classifier is fitted when it begins, and which has a step for form's sake.
NO_STEP = 1e-12
_OWN = (PROBE, "logit_adjustment")


def suited(name: str, kind: str, stage: dict[str, Any], found: Survey) -> Suited:
    """What a recipe says of a method.

    Args:
        name: a method, or the distribution of one that says what suits it.
        kind: of the rung.
        stage: the training stage without a method.
        found: the images.

    Raises:
        PluginError: no such method is installed, or one that the stages name.
        RecipeError: it is no method to train with, or cannot work with these images.
    """
    method, its = _find(name)
    try:
        made = its.suited_to(stage, found.counts)
    except RecipeError as error:
        raise RecipeError(f"--method {name}: {error}") from error
    if made is None:
        made = _as_it_is(method, its, stage)
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
    """Names, as --method takes them, of all installed methods that say what suits them, and are not `init`'s own."""
    return sorted(
        {_short(offer) for offer in catalogue.offers() if offer.distribution != "ltcore" and _says(_loaded(offer))}
        - set(_OWN)
    )


def _find(name: str) -> tuple[str, type[Method]]:
    """The method of a name, or the one of a distribution that says what suits it."""
    offers = catalogue.offers()
    if name not in {offer.name for offer in offers}:
        of_it = [offer for offer in offers if name in (_short(offer), offer.distribution)]
        says = [offer for offer in of_it if _says(_loaded(offer))]
        if len(says) == 1:
            return says[0].name, _loaded(says[0])
        if of_it:
            names = listed([offer.name for offer in of_it])
            raise RecipeError(f"--method {name}: the distribution has several methods; name one of {names}")
    try:
        offer = catalogue.find(name)
    except PluginError as error:
        raise PluginError(f"--method: {error}") from error
    return name, _loaded(offer)


def _as_it_is(name: str, its: type[Method], stage: dict[str, Any]) -> Suited:
    """The stage with a method in it that says nothing of what suits it."""
    builds = [hook for hook in ("build_backbone", "build_data") if hasattr(its, hook)]
    if builds:
        what = "a network, named by `backbone`" if builds[0] == "build_backbone" else "a data set, named by `data`"
        raise RecipeError(f"--method {name}: it is {what} in a recipe, and no method to train with")
    why = f"'{name}' with its defaults; it does not say what suits a folder of one's own."
    if hasattr(its, "post_calibrate") and not hasattr(its, "build_classifier"):
        return Suited(methods={name: {}}, stages=[{**stage, "methods": []}], calibrate=(name,), why=why)
    return Suited(methods={name: {}}, stages=[{**stage, "methods": [name]}], why=why)


def _short(offer: Offer) -> str:
    return offer.distribution.removeprefix("ltcore-").replace("-", "_")


def _loaded(offer: Offer) -> type[Method]:
    return catalogue.load(offer)


def _says(its: type[Method]) -> bool:
    """Whether a method says what suits it."""
    from ltcore.contract.method import Method

    return its.suited_to.__func__ is not Method.suited_to.__func__  # type: ignore[attr-defined]
