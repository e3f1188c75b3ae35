"""Setting up a stage: what trains, its optimiser, its batches, its forward pass and its update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltcore import ranks
from ltcore.contract.hookspecs import after_step, build_sampler, mix_inputs, on_stage_start
from ltcore.contract.model import matches, public_name, set_trainable
from ltcore.errors import PluginError, RunError
from ltcore.files import checkpoint
from ltcore.networks.optimizers import Parameters, build_optimizer
from ltcore.networks.schedules import never_comes
from ltcore.plan.acceleration import Choice
from ltcore.plan.checks import late_start, wrong_group
from ltcore.training import acceleration
from ltcore.training.accumulation import Accumulation
from ltcore.training.cache import FeatureCache
from ltcore.training.cache_files import CacheFiles, key_of
from ltcore.training.gradients import GivenGradients
from ltcore.training.groups import parameter_groups
from ltcore.training.loop import Extent, Loop, Observer, refuse_strays, seed_step
from ltcore.training.step import StepForward, Update
from ltcore.training.together import refuse_too_many, together
from ltcore.training.whole_step import WholeStep

if TYPE_CHECKING:
    from ltcore.data.loader import Loader
    from ltcore.discovery.binding import Hooks
    from ltcore.training.acceleration import Accelerator
    from ltcore.training.assembly import Assembly
    from ltcore.training.position import Position, Restored


def set_up(
    assembly: Assembly,
    index: int,
    hooks: Hooks,
    position: Position,
    restored: Restored | None,
    observers: Sequence[Observer],
    extent: Extent,
    caches: bool = True,
    files: CacheFiles | None = None,
    warn: Callable[[str], None] = lambda _: None,
    eager: bool = False,
) -> Loop:
    """Set up a stage, at its beginning or inside it.

    Args:
        assembly: the run's parts.
        index: the stage's place in the recipe.
        hooks: its methods, bound.
        position: where the run stands.
        restored: the checkpoint inside the stage to go on from; the model is restored already.
        observers: look on.
        extent: how much of the stage is trained.
        caches: whether a cache that the stage asks for is filled; else its batches are images all the same.
        files: where a cache lies that does not lie in memory; by default it does.
        warn: tells the user what comes up while the stage is trained.
        eager: whether the backbone is left as it is, whatever the recipe says.

    Raises:
        LtcoreError: the stage cannot begin, or not where the checkpoint stands; the message says why.
    """
    plan, model, state = assembly.plan.stages[index], assembly.model, assembly.state
    stage = plan.stage
    refuse_too_many(assembly.plan.loaded, index, stage)
    trained = _trained(assembly, index)
    set_trainable(model, trained, stage.batch_norm == "adapt")
    if not position.begun:
        _start(assembly, hooks)
        position.begun = True
    refuse_strays(stage.name, model, trained)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options, notes = stage.optimizer.model_extra or {}, list[str]()
    wanted: Parameters = parameters
    if stage.optimizer.groups:
        wanted, notes = parameter_groups(stage, model)
    optimizer = build_optimizer(stage.optimizer.name, wanted, stage.optimizer.lr, options, assembly.device.type)
    kept: dict[str, Tensor] = {}
    loss_sum = torch.zeros((), dtype=torch.float64, device=assembly.device)
    if restored is not None:
        checkpoint.restore_optimizer(optimizer, restored.tensors, restored.optimizer)
        loss_sum.copy_(restored.tensors["trainer/loss_sum"])
        named = restored.tensors.items()
        kept = {name.removeprefix("kept/"): each.cpu() for name, each in named if name.startswith("kept/")}
    sampler = hooks.call(build_sampler, stage.batch_size)
    if stage.iterations is not None:  # of a number of epochs the plan has said it
        epochs = math.ceil(stage.iterations / sampler.steps_per_epoch())
        _refuse_late_starts(assembly, index, epochs)
        notes = [*notes, *never_comes(stage.schedule, epochs)]
    began = time.perf_counter()
    source = _source(assembly, index, hooks, files) if caches else assembly.data.loaders["train"]
    position.seconds += time.perf_counter() - began
    start = "images"
    if isinstance(source, FeatureCache):
        start, notes = source.tap, [*notes, *source.notes]
    bf16 = stage.precision == "bf16" or (stage.precision == "auto" and assembly.device.type == "cuda")
    autocast = torch.bfloat16 if bf16 else None
    accumulation = Accumulation(stage.accumulate, stage.batch_size) if stage.accumulate > 1 else None
    found = Choice("off", "off") if eager else _acceleration(assembly, index, position, warn)
    accelerator = _accelerator(assembly, index, hooks, position, autocast, warn, found)
    forward = StepForward(model, hooks, start, stage.classification, autocast, accumulation, accelerator)
    given = _given_gradients(assembly, index, hooks, forward)
    step = given or (together(model, forward) if ranks.size() > 1 else forward)
    update = Update(optimizer, parameters, stage.clip_grad_norm, given is None, list(model.backbone.buffers()))
    whole = _whole_step(assembly, index, position, forward, update, found)
    loop = Loop(
        plan=plan,
        hooks=hooks,
        model=model,
        trained=trained,
        state=state,
        position=position,
        optimizer=optimizer,
        sampler=sampler,
        source=source,
        forward=step if whole is None else whole,
        update=update if whole is None else whole.update,
        loss_sum=loss_sum,
        observers=[*observers, *(each for each in (accelerator, whole) if each is not None)],
        extent=extent,
        notes=notes,
        kept=kept,
    )
    if restored is not None and not loop.reaches(position.epoch, position.step):
        raise RunError(
            f"stage '{stage.name}': the checkpoint stands at epoch {position.epoch + 1}, step {position.step}, but the "
            f"stage has {loop.epochs} epochs of {loop.steps_per_epoch} steps, {loop.total} in all. The data, or the "
            f"method that draws its batches, has changed since. {checkpoint.ANEW}"
        )
    return loop


def _refuse_late_starts(assembly: Assembly, index: int, epochs: int) -> None:
    """Methods that act from some epoch on act in a stage of iterations, too.

    Raises:
        RecipeError: one would begin behind the stage's end.
    """
    plan = assembly.plan.stages[index]
    for position, entry in enumerate(plan.entries):
        if late := late_start(entry, epochs):
            place = ("stages", index, "methods", position)
            raise assembly.plan.loaded.fail(place, f"stage '{plan.stage.name}': {entry.whose} {late}")


def _given_gradients(assembly: Assembly, index: int, hooks: Hooks, forward: StepForward) -> GivenGradients | None:
    """The step of a stage in which a method computes the gradients; None where none does."""
    answers = assembly.plan.stages[index].answers["compute_gradients"]
    if not answers:
        return None
    model, state = assembly.model, assembly.state

    def reseed() -> None:
        seed_step(state)
        for context in assembly.contexts.values():
            context.restart()

    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return GivenGradients(forward, hooks, answers[0].entry, trained, reseed)


def _acceleration(assembly: Assembly, index: int, position: Position, warn: Callable[[str], None]) -> Choice:
    """What makes the stage's steps quicker; the choice goes into `position`.

    Raises:
        RecipeError: what the stage asks for by name cannot be had.
    """
    stage, before = assembly.plan.stages[index].stage, position.acceleration
    found = acceleration.chosen(assembly.plan, index, assembly.device)
    if before and before["chosen"] == "off" and found.chosen != "off" and found.asked == "auto":
        found = Choice("auto", "off", before["why"])  # what could not be had is not tried again
    elif before and before["chosen"] != found.chosen:
        text = f"begun with {before['chosen']}, gone on with {found.chosen}: {found.why}"
        found = replace(found, why=text.removesuffix(": "))
        warn(f"stage '{stage.name}': {found.why}; the same up to rounding")
    if not before or found.chosen != before["chosen"]:
        position.acceleration = {"asked": found.asked, "chosen": found.chosen, "why": found.why}
    return found


def _accelerator(
    assembly: Assembly,
    index: int,
    hooks: Hooks,
    position: Position,
    autocast: torch.dtype | None,
    warn: Callable[[str], None],
    found: Choice,
) -> Accelerator | None:
    """What stands in for the stage's backbone; None where that is run itself."""
    if found.chosen not in acceleration.MAKERS or position.acceleration is None:
        return None
    stage = assembly.plan.stages[index].stage
    gives = "maps" if "maps" in hooks.taps else "pooled"
    piece = acceleration.Piece(assembly.model.backbone, gives, autocast)
    return acceleration.Accelerator(piece, found, stage, position.acceleration, warn)


def _whole_step(
    assembly: Assembly, index: int, position: Position, forward: StepForward, update: Update, found: Choice
) -> WholeStep | None:
    """What stands in for the stage's forward pass and update; None where they are run themselves."""
    if found.chosen != "step_graphs" or position.acceleration is None:
        return None
    plan = assembly.plan.stages[index]
    moving = {answer.entry.key for hook in (mix_inputs, after_step) for answer in plan.answers[hook.__name__]}
    return WholeStep(forward, update, plan.entries, assembly.contexts, moving, plan.stage, position.acceleration)


def _trained(assembly: Assembly, index: int) -> set[str]:
    """Names of the parameters that the stage's ``trainable`` names."""
    stage, model = assembly.plan.stages[index].stage, assembly.model
    names = {name: public_name(name, model.backbone) for name, _ in model.named_parameters()}
    for position, pattern in enumerate(stage.trainable):
        if not any(matches(public, pattern) for public in names.values()):
            raise assembly.plan.loaded.fail(
                ("stages", index, "trainable", position),
                f"stage '{stage.name}': trainable '{pattern}' matches nothing; "
                "the method has no parameters of that name",
            )
    wrong = wrong_group(stage, names.values())
    if wrong:
        place = ("stages", index, "optimizer", "groups", wrong[0])
        raise assembly.plan.loaded.fail(place, f"stage '{stage.name}': {wrong[1]}")
    own = [f"{key}.{pattern}" for key, entry in assembly.plan.entries.items() for pattern in entry.method.frozen]
    return {
        name
        for name, public in names.items()
        if any(matches(public, p) for p in stage.trainable) and not any(matches(public, p) for p in own)
    }


def _start(assembly: Assembly, hooks: Hooks) -> None:
    """Call on_stage_start.

    Raises:
        PluginError: a method has made or resized something that a resumed run could not restore.
    """
    model = assembly.model
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    hooks.call(on_stage_start)
    for name, tensor in model.state_dict().items():
        if tensor.shape != shapes.get(name):
            raise PluginError(
                f"stage '{assembly.state.stage}': on_stage_start made or resized {public_name(name, model.backbone)}, "
                "which a resumed run could not restore; a method makes its buffers in __init__ or on_run_start"
            )


def _source(assembly: Assembly, index: int, hooks: Hooks, files: CacheFiles | None) -> Loader | FeatureCache:
    """Where batches come from: the training images, or a cache of their features."""
    stage, loader = assembly.plan.stages[index].stage, assembly.data.loaders["train"]
    if stage.cache == "off":
        return loader
    tap = "maps" if "maps" in hooks.taps else "pooled"
    views = None if stage.cache == "eval" else stage.cache_views
    seed = (assembly.state.seed, "cache", stage.name)
    size, key = assembly.recipe.eval_batch_size, partial(key_of, assembly, index, tap)
    try:
        return FeatureCache(assembly.model, loader, tap, views, size, seed, stage.cache_precision, files, key)
    except RunError as error:
        error.within(f"stage '{stage.name}': ")
        raise
