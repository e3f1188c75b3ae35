"""The loop of one stage: epochs of steps, each a forward pass and an update, with observers beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ltcore import ranks
from ltcore.contract.hookspecs import (
    after_step,
    class_distribution,
    class_weights,
    extra_rows,
    image_transform,
    on_epoch_end,
    on_epoch_start,
    on_stage_end,
)
from ltcore.contract.model import public_name
from ltcore.contract.records import Batch
from ltcore.contract.samplers import DISTRIBUTIONS, EpochBatches, Sampler
from ltcore.data.image_functions import ImageChanges, ImageFunctions
from ltcore.discovery.kinds import ForEach
from ltcore.errors import PluginError
from ltcore.networks.schedules import learning_rate
from ltcore.seeding import derive_seed, generator_for

if TYPE_CHECKING:
    from ltcore.contract.context import RunState
    from ltcore.contract.model import Model
    from ltcore.data.loader import Loader
    from ltcore.discovery.binding import Hooks
    from ltcore.plan.plan import StagePlan
    from ltcore.training.cache import FeatureCache
    from ltcore.training.position import Position

#: The weighted loss terms of a batch, each 0-d float32; their sum is what is minimised.
Losses = dict[str, Tensor]


class Observer:
    """Looks on while a stage is trained; every event is for a subclass to answer or to leave.

    Observers act in their order. What one may change of the loop, it changes when the stage starts, such as
    ``loop.forward``.
    """

    def stage_entered(self, index: int) -> None:
        """A stage comes next; nothing of it has been built."""

    def stage_started(self, loop: Loop) -> None:
        """The stage is set up, and its first remaining epoch comes next."""

    def epoch_started(self, loop: Loop) -> None:
        """The epoch's images are drawn, and its first remaining step comes next."""

    def losses_computed(self, loop: Loop, losses: Losses) -> None:
        """The forward pass of a step is done, and nothing has been updated."""

    def step_ended(self, loop: Loop) -> None:
        """A step is done."""

    def checkpoint_written(self, loop: Loop) -> None:
        """What the rest of the run depends on has been written."""

    def epoch_ended(self, loop: Loop) -> None:
        """The epoch's last step is done; methods have not learned from it yet."""

    def stage_ended(self, loop: Loop) -> None:
        """The stage's last epoch is done."""

    def stage_left(self, index: int) -> None:
        """The stage is trained, evaluated and saved."""


class Extent(Protocol):
    """How much of a stage is trained."""

    def epochs(self, loop: Loop) -> Iterable[int]:
        """The epochs that remain."""

    def steps(self, indices: list[Tensor]) -> list[Tensor]:
        """The batches of an epoch, of those that were drawn."""


class Whole:
    """All of it."""

    def epochs(self, loop: Loop) -> Iterable[int]:
        """See `Extent`; none behind an epoch in which the stage has stopped to improve."""
        for epoch in range(loop.position.epoch, loop.epochs):
            if loop.position.validation and loop.position.validation["stopped"]:
                return
            yield epoch

    def steps(self, indices: list[Tensor]) -> list[Tensor]:
        """See `Extent`."""
        return indices


@dataclass
class Loop:
    """One stage, set up: see `ltcore.training.stage.set_up`.

    Attributes:
        plan: the stage's plan.
        hooks: its methods, bound.
        model: the model.
        trained: names of the parameters that train.
        state: where the run stands, for methods.
        position: where the run stands, for checkpoints.
        optimizer: over what trains.
        sampler: lays out the batches.
        source: gives images, or cached features.
        forward: from a batch and class weights [C] to the losses.
        update: from the losses and a learning rate to the next weights; returns the whole loss, 0-d.
        loss_sum: sum of the epoch's losses, 0-d float64.
        observers: look on.
        extent: how much of the stage is trained.
        notes: what the user should know about how the stage was set up.
        kept: weights of an earlier epoch with which the stage ends, named as in checkpoints; empty for its last ones.
    """

    plan: StagePlan
    hooks: Hooks
    model: Model
    trained: set[str]
    state: RunState
    position: Position
    optimizer: torch.optim.Optimizer
    sampler: Sampler
    source: Loader | FeatureCache
    forward: Callable[[Batch, Tensor | None], Losses]
    update: Callable[[Losses, float], Tensor]
    loss_sum: Tensor
    observers: Sequence[Observer]
    extent: Extent
    notes: Sequence[str] = ()
    kept: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stage = self.plan.stage
        self.steps_per_epoch = self.sampler.steps_per_epoch()
        self.total = self.stage.iterations or (self.stage.epochs or 0) * self.steps_per_epoch
        self.epochs = self.state.epochs = math.ceil(self.total / self.steps_per_epoch)
        #: Of the epoch: its steps, the indices of those that are trained, and the class weights [C].
        self.steps = 0
        self.batches: list[Tensor] = []
        #: Of the epoch: by method, the indices of its extra rows [M] for each of those batches.
        self.extra: dict[str, list[Tensor]] = {}
        self.weights: Tensor | None = None
        #: Of the epoch: what methods do to its images; None where none does anything.
        self.functions: ImageFunctions | None = None
        self._counted = time.perf_counter()

    def reaches(self, epoch: int, step: int) -> bool:
        """Whether the stage comes by a place: so many whole epochs and steps are done."""
        return step <= self.steps_per_epoch and epoch * self.steps_per_epoch + step <= self.total

    def train(self) -> None:
        """Go through the epochs and steps that remain."""
        self._tell("stage_started")
        for epoch in self.extent.epochs(self):
            self._enter(epoch)
            if self.position.step == 0:
                self.loss_sum.zero_()
                self.hooks.call(on_epoch_start)
                refuse_strays(self.stage.name, self.model, self.trained)
            self.weights = self.hooks.call(class_weights)
            drawn = self._draw(epoch)
            self.functions = self._image_functions()
            self._tell("epoch_started")
            for batch in self._batches(epoch, drawn):
                losses = self.forward(batch, self.weights)
                self._tell("losses_computed", losses)
                self.loss_sum += self.update(losses, self.state.learning_rate)
                self._write(after_step)
                self.position.step, self.position.images = self.state.step + 1, self.position.images + len(batch.images)
                self._tell("step_ended")
                # What adds up gradients lives as long as a loss does, and binds the next step to this one's stream.
                del losses
            self.count_time()
            self._tell("epoch_ended")
            self._leave(epoch)
            self.hooks.call(on_epoch_end)
            self.position.epoch, self.position.step = epoch + 1, 0
        if self.kept:
            self.model.load_state_dict({name.removeprefix("model/"): tensor for name, tensor in self.kept.items()})
        self._write(on_stage_end)
        self._tell("stage_ended")

    def replayed(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch as `train` gives them to the forward pass, while nothing is trained.

        No hook of an epoch's beginning or end is called, as in a run that goes on inside the epoch.
        """
        self._enter(epoch)
        drawn = self._draw(epoch)
        self.functions = self._image_functions()
        return self._batches(epoch, drawn)

    def _write(self, hook: Callable[..., None]) -> None:
        """Call a hook in which methods may write into what trains.

        Raises:
            PluginError: one has written into what the stage freezes.
        """
        if not (answers := self.plan.answers[hook.__name__]):
            return
        parts = (self.model.backbone, self.model.classifier)
        frozen = [each for part in parts for each in part.parameters() if not each.requires_grad]
        before = [each._version for each in frozen]
        with torch.no_grad():
            self.hooks.call(hook)
        if before != [each._version for each in frozen]:
            raise PluginError(
                f"stage '{self.stage.name}': {' or '.join(answer.entry.whose for answer in answers)} changed weights "
                f"that the stage freezes (hook {hook.__name__}); tell its author"
            )

    def _tell(self, event: str, *about: Losses) -> None:
        for observer in self.observers:
            getattr(observer, event)(self, *about)

    def _enter(self, epoch: int) -> None:
        self.steps = min(self.steps_per_epoch, self.total - epoch * self.steps_per_epoch)
        self.state.epoch, self.state.step, self.state.learning_rate = epoch, -1, self.rate(epoch, 0)
        self.state.progress.fill_(epoch * self.steps_per_epoch / self.total)

    def _leave(self, epoch: int) -> None:
        # Also where a resumed epoch had no step left. Not -1: the features of on_epoch_start are out of date.
        self.state.step = self.steps
        self.state.progress.fill_((epoch * self.steps_per_epoch + self.steps - 1) / self.total)

    def _draw(self, epoch: int) -> EpochBatches:
        generator = generator_for("cpu", self.state.seed, "sampler", self.stage.name, epoch)
        drawn = self.sampler.draw(self.steps, self._distribution(), generator)
        self.batches = self.extent.steps(drawn.indices)
        self.extra = self._extra_rows(epoch)
        self._counted = time.perf_counter()
        return drawn

    def _batches(self, epoch: int, drawn: EpochBatches) -> Iterator[Batch]:
        """The batches of the steps that remain; each makes its step the one in which the run stands."""
        state, stage, device = self.state, self.stage, self.state.device
        indices, blocks = self.batches, list(self.extra.values())
        wanted = [torch.cat(rows) for rows in zip(indices, *blocks, strict=True)] if blocks else indices
        remaining = range(self.position.step, len(indices))
        targets, seed = state.training_targets, (state.seed, stage.name, epoch)
        generators = (generator_for(self.source.generator_device, "images", *seed, step) for step in remaining)
        changes = None
        if self.functions is not None:
            blocks_of = [{name: len(block[step]) for name, block in self.extra.items()} for step in remaining]
            sizes = zip([len(indices[step]) for step in remaining], blocks_of, strict=True)
            functions = self.functions
            changes = ImageChanges(functions, (functions.rows(size, extra) for size, extra in sizes))
        batches = self.source.train_batches(wanted[self.position.step :], generators, changes)
        for step, images in zip(remaining, batches, strict=True):
            state.step, state.learning_rate = step, self.rate(epoch, step)
            state.progress.fill_((epoch * self.steps_per_epoch + step) / self.total)
            seed_step(state)
            own = [indices[step], *(block[step] for block in blocks)]
            count = sum(map(len, own))
            if len(images) < count:  # of several processes each has loaded its part; methods see all
                images = ranks.joined(images, count)
            rows = [images] if len(own) == 1 else torch.split(images, [len(each) for each in own])
            batch, *extra = (
                Batch(
                    images=part,
                    targets=targets[each].to(device, non_blocking=True),
                    source_index=each.to(device, non_blocking=True),
                    layout=drawn.layout,
                )
                for part, each in zip(rows, own, strict=True)
            )
            yield replace(batch, extras=dict(zip(self.extra, extra, strict=True))) if extra else batch

    def _extra_rows(self, epoch: int) -> dict[str, list[Tensor]]:
        """By method, the indices of its extra rows [M] for each batch that is trained.

        Raises:
            PluginError: an answer is no list of indices.
        """
        if not (answers := self.plan.answers["extra_rows"]):
            return {}
        stage, size = self.stage.name, len(self.state.training_targets)
        seeded = ForEach(lambda key: generator_for("cpu", self.state.seed, "extra", key, stage, epoch))
        found = self.hooks.call_own(extra_rows, self.batches, seeded)
        for key, blocks in found.items():
            whole = len(blocks) == len(self.batches) and all(
                isinstance(each, Tensor) and each.dtype == torch.int64 and each.dim() == 1 and each.device.type == "cpu"
                for each in blocks
            )
            if not whole or any(len(each) and not 0 <= each.min() <= each.max() < size for each in blocks):
                whose = next(answer.entry.whose for answer in answers if answer.entry.key == key)
                raise PluginError(
                    f"stage '{stage}': {whose} gave no indices [M] int64 on the CPU, from 0 to {size - 1}, for each of "
                    f"the {len(self.batches)} batches (hook extra_rows); tell its author"
                )
        return found

    def _image_functions(self) -> ImageFunctions | None:
        if not (answers := self.plan.answers["image_transform"]):
            return None
        whose = {answer.entry.key: f"stage '{self.stage.name}': {answer.entry.whose}: " for answer in answers}
        found: Any = self.hooks.call(image_transform)
        return ImageFunctions.pack(found, whose)

    def _distribution(self) -> Tensor | None:
        named = DISTRIBUTIONS[self.stage.sampler] if self.stage.sampler else None
        if named:
            return named(self.state.class_counts.cpu())
        drawn = self.hooks.call(class_distribution)
        if drawn is None:
            return None
        drawn = drawn.detach().cpu().double()
        if drawn.shape != (self.state.num_classes,) or not (drawn >= 0).all() or not 0 < drawn.sum() < math.inf:
            raise PluginError(
                f"stage '{self.stage.name}': {self.plan.answers['class_distribution'][0].entry.whose} gave no "
                f"distribution over the {self.state.num_classes} classes (hook class_distribution); tell its author"
            )
        return drawn

    def rate(self, epoch: int, step: int) -> float:
        """The learning rate of a step."""
        stage = self.stage
        return learning_rate(stage.schedule, stage.optimizer.lr, epoch, self.total, step, self.steps_per_epoch)

    def mean_loss(self) -> float:
        """Mean over the epoch's steps so far; waits for the device."""
        return float(self.loss_sum) / max(self.position.step, 1)

    def count_time(self) -> None:
        """Bring `Position.seconds` up to now."""
        now = time.perf_counter()
        self.position.seconds, self._counted = self.position.seconds + now - self._counted, now


def seed_step(state: RunState) -> None:
    """Dropout and the like draw from torch's global generator: seeded for each step, it has nothing to remember."""
    seed, kind = derive_seed("global", state.seed, state.stage, state.epoch, state.step), state.device.type
    if kind not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    # What torch.manual_seed does, but for the devices that are not in use: for each kind of those it keeps the seed
    # with a stack trace, which takes a millisecond.
    torch.default_generator.manual_seed(seed)
    if kind == "cuda":
        torch.cuda.manual_seed_all(seed)


def refuse_strays(stage: str, model: Model, trained: set[str]) -> None:
    """What requires a gradient is what the recipe names, whatever a hook has done.

    Args:
        stage: the stage's name.
        model: the model.
        trained: names of the parameters that train.

    Raises:
        PluginError: a parameter requires a gradient, and is not named.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in trained:
            raise PluginError(
                f"stage '{stage}': parameter '{public_name(name, model.backbone)}' would be trained "
                "by no optimiser; a method makes its parameters in __init__ or on_run_start, and the recipe names "
                "them in 'trainable'"
            )
