"""A plan as data and as text: what ``ltcore plan`` prints."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ltcore.contract.hookspecs import HOOKS
from ltcore.contract.model import matches
from ltcore.data.pretraining import as_pretrained
from ltcore.errors import RecipeError, listed
from ltcore.networks.optimizers import group_parameters
from ltcore.plan import acceleration
from ltcore.plan.checks import backbone_names, linear_names
from ltcore.plan.plan import build_skeleton
from ltcore.untrusted import printable

if TYPE_CHECKING:
    from ltcore.contract.recipe import Recipe
    from ltcore.discovery.binding import Entry, Implementation
    from ltcore.plan.plan import Plan, StagePlan


def describe(plan: Plan) -> dict[str, Any]:
    """Everything that the plan says, as JSON-able data."""
    recipe = plan.loaded.recipe
    added: Counter[str] = Counter()
    for name, parameter in plan.skeleton.named_parameters():
        added[plan.skeleton.added_by.get(name, "")] += parameter.numel()
    return {
        "recipe": recipe.name,
        "description": recipe.description,
        "data": {**_whose(plan.data), "use": recipe.data.use, "options": plan.data.method.options.model_dump()},
        "backbone": {
            **_whose(plan.backbone),
            "use": recipe.backbone.use,
            "options": plan.backbone.method.options.model_dump(),
            "taps": list(plan.skeleton.taps),
            "experts": plan.skeleton.experts,
            "adapt": [
                {**_answer(answer), "parameters": added[answer.entry.key]}
                for answer in plan.adaptation["adapt_backbone"]
            ],
        },
        "methods": {
            key: {**_whose(entry), "use": entry.offer.name, "options": entry.method.options.model_dump()}
            for key, entry in plan.entries.items()
        },
        "stages": [_describe_stage(plan, stage) for stage in plan.stages],
        "select": None if recipe.select is None else recipe.select.model_dump(),
        "unsure": None if recipe.unsure is None else recipe.unsure.model_dump(),
        "calibrate": [_answer(answer) for answer in plan.calibration["post_calibrate"]],
        "warnings": list(plan.warnings),
        "notes": [*_unpackaged(plan), *_notes(recipe), *as_pretrained(recipe.data, plan.skeleton.pretraining)[1]],
    }


def _unpackaged(plan: Plan) -> list[str]:
    """The files that the recipe names in place of what is installed: a sentence each."""
    return [
        f"{file.name} is unpackaged code of the recipe, {file.path}; a run keeps a copy of it"
        for file in plan.loaded.code.values()
    ]


def _notes(recipe: Recipe) -> list[str]:
    """What a reader of the plan should know beside it: a sentence each."""
    low = {stage.name: stage.precision for stage in recipe.stages if stage.precision != "fp32"}
    sources = "; ".join(dict.fromkeys(figure.source for figure in recipe.published if figure.precision == "fp32"))
    if not (low and sources):
        return []
    how = [("auto is bf16 on a GPU" if precision == "auto" else precision) for precision in low.values()]
    changes = " ".join(f"--set stages.{name}.precision=fp32" for name in low)
    return [f"precision {' and '.join(dict.fromkeys(how))}, and the published protocol ({sources}) is fp32: {changes}"]


def describe_taps(plan: Plan, image_size: int | None = None) -> dict[str, Any]:
    """Every tap of the backbone with the shape of a row, as JSON-able data.

    Args:
        plan: the plan.
        image_size: pixels of a side; None for the data's option ``image_size``, or 32 where it has none: no data is
            read.

    Raises:
        RecipeError: the backbone does not take images of that size.
    """
    from ltcore.networks.tap_probe import tap_shapes

    of_data = getattr(plan.data.method.options, "image_size", None)
    size = image_size or (of_data if isinstance(of_data, int) else 32)
    backbone = build_skeleton(plan.loaded, plan.answers["backbone"], plan.adaptation, size)
    try:
        shapes = tap_shapes(backbone, (3, size, size))
    except RecipeError as error:
        error.within(f"{plan.loaded.where('backbone')}: ")
        raise
    return {
        "tap_shapes": [
            {"tap": tap, "shape": list(shape), "kind": _kind(backbone.has_maps(tap), shape)}
            for tap, shape in shapes.items()
        ],
        "image_size": size,
    }


def _kind(is_map: bool, shape: tuple[int, ...]) -> str:
    if is_map:
        return "map"
    return {1: "pooled", 2: "tokens"}.get(len(shape), "channels last")


def _whose(entry: Entry) -> dict[str, str]:
    return {"distribution": entry.offer.distribution, "version": entry.offer.version}


def _answer(answer: Implementation) -> dict[str, Any]:
    tap = {"tap": answer.entry.method.tap} if answer.hook == "augment_features" else {}
    return {"method": answer.entry.key, **_whose(answer.entry), **tap}


def _describe_stage(plan: Plan, stage_plan: StagePlan) -> dict[str, Any]:
    stage = stage_plan.stage
    sizes = dict(zip(backbone_names(plan.skeleton), (p.numel() for p in plan.skeleton.parameters()), strict=True))
    hooks: dict[str, Any] = {}
    for name, hook in HOOKS.items():
        answers = [_answer(answer) for answer in stage_plan.answers[name]]
        if answers:
            hooks[name] = {"kind": hook.kind, "methods": answers}
        elif name == "build_ensemble" and plan.skeleton.experts == 1:
            continue
        elif hook.default is not None and hook.is_called_in(stage.classification):
            default = stage.sampler if name == "class_distribution" and stage.sampler else hook.default.text
            hooks[name] = {"kind": hook.kind, "methods": [], "core": default}
    if stage_plan is not plan.stages[0] and stage.classifier == "keep":
        for name in ("build_classifier", "build_ensemble"):
            if name in hooks and not stage_plan.answers[name]:
                hooks[name]["core"] = "kept from the stage before"
    return {
        "name": stage.name,
        "epochs": stage.epochs,
        "iterations": stage.iterations,
        "batch_size": stage.batch_size,
        "accumulate": _accumulation(plan, stage_plan),
        "trainable": list(stage.trainable),
        "trained_backbone_parameters": sum(
            size for name, size in sizes.items() if any(matches(name, pattern) for pattern in stage.trainable)
        ),
        "backbone_parameters": sum(sizes.values()),
        "sampler": stage.sampler
        or (_names(stage_plan, "build_sampler") or _names(stage_plan, "class_distribution") or "instance"),
        "optimizer": _optimizer(plan, stage_plan),
        "schedule": {"name": stage.schedule.name, **stage.schedule.model_dump()},
        "precision": stage.precision,
        "accelerate": acceleration.described(stage, stage_plan.answers, plan.skeleton),
        "cache": stage.cache if stage.cache_precision == "fp32" else f"{stage.cache}, {stage.cache_precision}",
        "validation": {"every": stage.validate_every, "stop_after": stage.stop_after, "keep": stage.keep}
        if stage.validate_every
        else None,
        "hooks": hooks,
    }


def _accumulation(plan: Plan, stage_plan: StagePlan) -> dict[str, Any] | None:
    """In which parts a batch goes through the backbone, and up to which tap; None where it goes as a whole."""
    stage = stage_plan.stage
    if stage.accumulate == 1:
        return None
    acting = {answer.entry.method.tap for answer in stage_plan.answers["augment_features"]}
    until = next((tap for tap in plan.skeleton.taps if tap in acting), "pooled")
    return {"parts": stage.accumulate, "rows": -(-stage.batch_size // stage.accumulate), "until": until}


def _optimizer(plan: Plan, stage_plan: StagePlan) -> dict[str, Any]:
    """The stage's optimiser; each of its groups with what an earlier one has of it, as far as names are known."""
    stage = stage_plan.stage
    optimizer = stage.optimizer.model_dump(exclude={"groups"})
    if stage.optimizer.groups:
        names = [*backbone_names(plan.skeleton), *(() if stage_plan.built else linear_names(plan.skeleton))]
        trained = [name for name in names if any(matches(name, pattern) for pattern in stage.trainable)]
        elsewhere = group_parameters(trained, stage.optimizer.groups).elsewhere
        optimizer["groups"] = {
            pattern: {"arguments": group.model_dump(exclude_none=True), "without": list(elsewhere[pattern])}
            for pattern, group in stage.optimizer.groups.items()
        }
    return optimizer


def _names(stage_plan: StagePlan, hook: str) -> str:
    return ", ".join(answer.entry.key for answer in stage_plan.answers[hook])


def render(described: dict[str, Any]) -> str:
    """The text of ``ltcore plan`` from what `describe` returns."""
    data, backbone = described["data"], described["backbone"]
    lines = [f"recipe    {described['recipe']}"]
    if described["description"]:
        lines += [f"          {line}" for line in described["description"].splitlines()]
    lines += [
        f"data      {data['use']}{_options(data)} ({data['distribution']} {data['version']})",
        f"backbone  {backbone['use']}{_options(backbone)} ({backbone['distribution']} {backbone['version']})",
        *([f"          {backbone['experts']} experts, each with its classifier"] if backbone["experts"] > 1 else []),
        *_render_taps(backbone),
        *(
            f"          adapted by {_person(answer)}: {answer['parameters']:,} parameters"
            for answer in backbone["adapt"]
        ),
    ]
    for name, method in described["methods"].items():
        lines.append(f"method    {name}{_options(method)} ({method['distribution']} {method['version']})")
    lines += [f"warning   {text}" for text in described["warnings"]]
    lines += [f"note      {text}" for text in described["notes"]]
    for number, stage in enumerate(described["stages"], 1):
        lines += ["", *_render_stage(stage, number, len(described["stages"]))]
    lines += ["", "calibration"]
    steps = [f"  post_calibrate      fold     {_person(answer)}" for answer in described["calibrate"]]
    lines += steps or ["  none"]
    if described["unsure"] is not None:
        asked, least = described["unsure"]["precision"], described["unsure"]["least"]
        lines.append(f"  unsure below a threshold of the class: precision {asked:g} on {least} or more held-out images")
    return "\n".join(map(printable, lines + _render_select(described["select"])))


def _render_select(select: dict[str, Any] | None) -> list[str]:
    if select is None:
        return []
    held = f"{select['holdout']} held-out images per class" if select["holdout"] else "the validation split"
    after = "then trained on all images" if select["retrain"] else "whose network is the result"
    lines = [f"  {path}: {', '.join(map(str, values))}" for path, values in select["options"].items()]
    return ["", f"selection on {held}, {after}", *lines]


def _render_taps(backbone: dict[str, Any]) -> list[str]:
    if "tap_shapes" not in backbone:
        return [f"          taps {', '.join(backbone['taps'])}"]
    size, width = backbone["image_size"], max(len(tap) for tap in backbone["taps"])
    return [f"          taps, for images of 3 x {size} x {size}:"] + [
        f"            {row['tap']:{width}}  {' x '.join(map(str, row['shape'])):16}  {row['kind']}"
        for row in backbone["tap_shapes"]
    ]


def _render_stage(stage: dict[str, Any], number: int, count: int) -> list[str]:
    length = f"{stage['epochs']} epochs" if stage["epochs"] else f"{stage['iterations']} iterations"
    trained, whole = stage["trained_backbone_parameters"], stage["backbone_parameters"]
    share = f"{trained / 1e6:.2f} of the backbone's {whole / 1e6:.2f} million parameters"
    lines = [
        f"stage {number}/{count}  {stage['name']}: {length}, batch {stage['batch_size']}",
        *_render_accumulation(stage["accumulate"]),
        f"  trains      {', '.join(stage['trainable'])} ({share})",
        f"  sampler     {stage['sampler']}",
        *_render_optimizer(stage["optimizer"]),
        f"  schedule    {_pairs(stage['schedule'])}",
        f"  precision   {stage['precision']}, cache {stage['cache']}",
        f"  accelerate  {acceleration.rendered(stage['accelerate'])}",
        *_render_validation(stage["validation"]),
    ]
    for hook, answer in stage["hooks"].items():
        people = [_person(method) for method in answer["methods"]] or [f"core: {answer['core']}"]
        lines += [
            f"  {hook if not i else '':19} {answer['kind'] if not i else '':8} {person}"
            for i, person in enumerate(people)
        ]
    return lines


def _render_validation(asked: dict[str, Any] | None) -> list[str]:
    if asked is None:
        return []
    every = "every epoch" if asked["every"] == 1 else f"every {asked['every']} epochs"
    until = f", until {asked['stop_after']} bring nothing" if asked["stop_after"] else ""
    return [f"  validates   {every}{until}; ends with the {asked['keep']} weights"]


def _render_accumulation(parts: dict[str, Any] | None) -> list[str]:
    if parts is None:
        return []
    number, until = parts["parts"], parts["until"]
    return [
        f"  accumulate  {number} parts of at most {parts['rows']} rows up to '{until}', one held at a time; costs "
        f"{number - 1}/{number} of a forward pass more",
        *([] if until == "pooled" else [f"              behind '{until}' activations of all rows are held"]),
    ]


def _render_optimizer(optimizer: dict[str, Any]) -> list[str]:
    lines = [f"  optimizer   {_pairs({name: value for name, value in optimizer.items() if name != 'groups'})}"]
    for pattern, group in optimizer.get("groups", {}).items():
        without = f", without what {listed(group['without'])} has" if group["without"] else ""
        lines.append(f"    group {pattern}: {_pairs(group['arguments']) or 'as the others'}{without}")
    return lines


def _person(answer: dict[str, Any]) -> str:
    tap = f" at {answer['tap']}" if "tap" in answer else ""
    return f"{answer['method']}{tap} ({answer['distribution']} {answer['version']})"


def _options(described: dict[str, Any]) -> str:
    shown = {name: value for name, value in described["options"].items() if value is not None}
    return f" {_pairs(shown)}" if shown else ""


def _pairs(values: dict[str, Any]) -> str:
    return " ".join(f"{value}" if name == "name" else f"{name}={value}" for name, value in values.items())
