"""The plan of a run: which method answers which hook in which stage, checked before any data is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from ltcore.contract.hookspecs import HOOKS
from ltcore.discovery import catalogue, deprecations
from ltcore.discovery.binding import Answers, Entry, implementations
from ltcore.errors import LtcoreError, PluginError, listed
from ltcore.networks.schedules import never_comes
from ltcore.plan.adapting import adapted
from ltcore.plan.checks import CalibrationChecks, StageChecks
from ltcore.plan.untrained import unadapted, untrained
from ltcore.seeding import derive_seed, seed_globally

if TYPE_CHECKING:
    from ltcore.contract.backbone import Backbone
    from ltcore.contract.recipe import Stage
    from ltcore.recipe.loading import LoadedRecipe


@dataclass(frozen=True)
class StagePlan:
    """A stage of the recipe with the methods that act in it, bound hook by hook.

    `built`: whether a method builds the classifier, or what combines those of experts, here or in an earlier stage that
    this one takes it from.
    """

    stage: Stage
    entries: tuple[Entry, ...]
    answers: Answers
    built: bool


@dataclass(frozen=True)
class Plan:
    """Everything about a run that is known before its data.

    Attributes:
        loaded: the recipe and where each of its values came from.
        data: the method that builds the data.
        backbone: the method that builds the backbone.
        entries: every other method, by its name in the recipe.
        answers: what the data and backbone methods implement, by role.
        start: what every other method implements, for on_run_start.
        skeleton: the backbone on the meta device: names and shapes, no values.
        stages: the stages in order.
        calibration: the implementations of post_calibrate, in the order of ``calibrate``.
        adaptation: the implementations of adapt_backbone, in the order of ``adapt``.
        warnings: what the user should know, and that stops nothing; a sentence each.
    """

    loaded: LoadedRecipe
    data: Entry
    backbone: Entry
    entries: dict[str, Entry]
    answers: dict[str, Answers]
    start: Answers
    skeleton: Backbone
    stages: tuple[StagePlan, ...]
    calibration: Answers
    adaptation: Answers
    warnings: tuple[str, ...]


def make_plan(loaded: LoadedRecipe, to_run: bool = True) -> Plan:
    """Import what the recipe names, and check that it fits together.

    Args:
        loaded: the recipe.
        to_run: check the values of the optimisers' options as well.

    Raises:
        RecipeError: options, combinations, taps or names that do not fit; the message says where and what to do.
        PluginError: a method is missing, fails to import or is wrongly written.
    """
    recipe = loaded.recipe
    data, data_answers = provider(loaded, "data", recipe.data.use)
    backbone, backbone_answers = provider(loaded, "backbone", recipe.backbone.use)
    entries = {key: _entry(loaded, ("methods", key), key, method.use or key) for key, method in recipe.methods.items()}
    adaptation = _listed(loaded, ("backbone", "adapt"), recipe.backbone.adapt, entries, "adapt_backbone")
    skeleton = build_skeleton(loaded, backbone_answers, adaptation)
    stages = []
    built = False
    for index, stage in enumerate(recipe.stages):
        active = tuple(entries[key] for key in stage.methods)
        answers = _answers(loaded, ("stages", index, "methods"), active)
        answers |= {name: [] for name, hook in HOOKS.items() if hook.called in ("setup", "end")}
        builders = [*answers["build_classifier"], *answers["build_ensemble"]]
        built = bool(builders) or (built and stage.classifier == "keep")
        StageChecks(loaded, index, stage, data, backbone, active, answers, skeleton, to_run, built).run()
        stages.append(StagePlan(stage, active, answers, built))
    calibration = _listed(loaded, ("calibrate",), recipe.calibrate, entries, "post_calibrate")
    _check_calibration(loaded, data, backbone, entries, calibration, skeleton)
    _check_unsure(loaded, data, backbone)
    return Plan(
        loaded,
        data,
        backbone,
        entries,
        {"data": data_answers, "backbone": backbone_answers},
        implementations(entries.values()),
        skeleton,
        tuple(stages),
        calibration,
        adaptation,
        (
            *deprecations.warnings(chain(*implementations([data, backbone, *entries.values()]).values())),
            *_late_schedules(loaded),
            *_no_experts(loaded, skeleton, stages),
            *_uncalled(stages),
            *untrained(loaded, [(plan.stage, plan.entries) for plan in stages]),
            *unadapted(loaded, skeleton),
        ),
    )


def _no_experts(loaded: LoadedRecipe, skeleton: Backbone, stages: Iterable[StagePlan]) -> Iterable[str]:
    """What combines experts, in a network that has none."""
    for index, stage in enumerate(stages if skeleton.experts == 1 else ()):
        for answer in stage.answers["build_ensemble"]:
            yield (
                f"{loaded.where('stages', index, 'methods')}: stage '{stage.stage.name}': {answer.entry.whose} "
                f"combines experts, and backbone '{loaded.recipe.backbone.use}' has none: it is not asked"
            )


def _check_calibration(
    loaded: LoadedRecipe,
    data: Entry,
    backbone: Entry,
    entries: dict[str, Entry],
    calibration: Answers,
    skeleton: Backbone,
) -> None:
    """What must hold of the methods under ``calibrate``.

    Raises:
        RecipeError: one of them requires what is not there.
    """
    stages, active = loaded.recipe.stages, tuple(entries[key] for key in loaded.recipe.calibrate)
    still = stages[-1].model_copy(update={"trainable": [], "batch_norm": "frozen", "accumulate": 1})
    every = tuple(entries.values())
    CalibrationChecks(
        loaded, len(stages), still, data, backbone, active, calibration, skeleton, False, False, every
    ).run()


def _check_unsure(loaded: LoadedRecipe, data: Entry, backbone: Entry) -> None:
    """Thresholds are chosen on held-out images.

    Raises:
        RecipeError: there are none.
    """
    held = loaded.recipe.data.holdout or "validation" in {*data.method.provides, *backbone.method.provides}
    if loaded.recipe.unsure is not None and not held:
        raise loaded.fail(
            ("unsure",),
            "unsure: the thresholds are chosen on held-out images, and there are none; set data.holdout, such as "
            "data.holdout: 20, or use data with a validation split",
        )


def _late_schedules(loaded: LoadedRecipe) -> Iterable[str]:
    """What stages with a number of epochs never reach; of those with `iterations` only the run knows it."""
    for index, stage in enumerate(loaded.recipe.stages):
        for text in never_comes(stage.schedule, stage.epochs) if stage.epochs is not None else ():
            yield f"{loaded.where('stages', index, 'schedule')}: stage '{stage.name}': {text}"


def _uncalled(stages: Iterable[StagePlan]) -> Iterable[str]:
    """Hooks that a stage without classification leaves out, of methods that do something else in it."""
    for plan in stages:
        left_out = [
            name for name in HOOKS if HOOKS[name].in_stages and not HOOKS[name].is_called_in(plan.stage.classification)
        ]
        for entry in plan.entries:
            silent = [name for name in left_out for answer in plan.answers[name] if answer.entry is entry]
            if silent:
                yield (
                    f"stage '{plan.stage.name}' has no classification, and does not call {listed(silent)} of "
                    f"{entry.whose}; use the method in a stage with classification, or leave it out of this one"
                )


def provider(loaded: LoadedRecipe, role: str, name: str) -> tuple[Entry, Answers]:
    """The entry that builds the data or the backbone (`role`), and what it implements.

    Raises:
        LtcoreError: as `make_plan`.
    """
    entry = _entry(loaded, (role,), name, name)
    answers = _answers(loaded, (role, "use"), [entry])
    if not answers[f"build_{role}"]:
        raise loaded.fail(
            (role, "use"),
            f"method '{name}' ({entry.offer.distribution} {entry.offer.version}) does not build the {role} "
            f"(hook build_{role}); 'ltcore plugins' lists what does",
        )
    return entry, answers


def _entry(loaded: LoadedRecipe, path: tuple[str, ...], key: str, name: str) -> Entry:
    where = loaded.where(*path, "use")
    try:
        offer = loaded.offer(name)
        kind = catalogue.load(offer)
    except PluginError as error:
        error.within(f"{where}: ")
        raise
    whose = f"method '{name}', {offer.distribution} {offer.version}"
    options = loaded.validate_options(kind.Options, (*path, "options"), whose)
    seed_globally(derive_seed(loaded.recipe.seed, "method", key))  # for modules that are made in __init__
    try:
        return Entry(key, offer, kind(options))
    except LtcoreError as error:
        error.within(f"{where}: {offer}: ")
        raise
    except Exception as error:
        raise PluginError(
            f"{where}: {offer} could not be made: {type(error).__name__}: {error}; tell its author"
        ) from error


def _answers(loaded: LoadedRecipe, path: tuple[str | int, ...], entries: Iterable[Entry]) -> Answers:
    try:
        return implementations(entries)
    except PluginError as error:
        error.within(f"{loaded.where(*path)}: ")
        raise


#: How many classes an adapter is told of where no data is read.
_CLASSES = 2
#: What a method does that a list of the recipe names for a hook.
_DOES = {"post_calibrate": "calibrate", "adapt_backbone": "adapt the backbone"}


def _listed(
    loaded: LoadedRecipe, path: tuple[str, ...], keys: Iterable[str], entries: dict[str, Entry], hook: str
) -> Answers:
    """What the methods of a list outside of stages implement; each answers the list's hook."""
    answers = _answers(loaded, path, [entries[key] for key in keys])
    acting = {answer.entry.key for answer in answers[hook]}
    for position, key in enumerate(keys):
        if key not in acting:
            raise loaded.fail(
                (*path, position),
                f"{entries[key].whose} does not {_DOES[hook]} (hook {hook}); name it in a stage's methods",
            )
    return answers


def build_skeleton(loaded: LoadedRecipe, answers: Answers, adaptation: Answers, image_size: int = 32) -> Backbone:
    """The backbone on the meta device with its adapters, for images of 3 channels: names and shapes, no values.

    Raises:
        LtcoreError: as `make_plan`.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class NoInitialValues(TorchFunctionMode):
        """On the meta device random values are nothing, but drawing them makes PyTorch import its compiler."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(function, "__name__", "") in ("normal_", "uniform_") and args:
                return args[0]
            return function(*args, **(kwargs or {}))

    (answer,) = answers["build_backbone"]
    with torch.device("meta"), NoInitialValues():
        try:
            backbone: Backbone = answer.bind(None)(3, image_size)
        except LtcoreError as error:
            error.within(f"{loaded.where('backbone')}: ")
            raise
        return adapted(backbone, _CLASSES, adaptation, loaded)
