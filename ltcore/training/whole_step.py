"""A stage's whole step as CUDA graphs: one of forward pass, losses and backward pass, and one of the update.

A replayed graph runs kernels and no Python. So it holds as long as nothing in Python would have given other kernels.
That is what methods keep in their attributes, what they read of the run's position, and where tensors lie. Methods need
not know of it. What they do is watched while the step is recorded, and what they keep is compared.

Around the graphs run as ever: loading, ``mix_inputs``, observers between the losses and the update, ``after_step``, and
the hooks of epochs and stages. The first steps of a stage and batches that are not full are eager.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltcore.contract.context import Context
from ltcore.contract.hookspecs import mix_inputs
from ltcore.errors import RunError
from ltcore.networks.optimizers import rates_as_tensors, set_learning_rate
from ltcore.training.acceleration import Failed, one_message, unwatched, waiting_allowed
from ltcore.training.loop import Loop, Losses, Observer
from ltcore.training.python_state import State, changes, python_state, tensors_in, unknown
from ltcore.training.sameness import EPSILON, TIMES, Kept, Seen, difference, largest, rounding

if TYPE_CHECKING:
    from ltcore.contract.recipe import Stage
    from ltcore.contract.records import Batch
    from ltcore.contract.result import AccelerationRecord
    from ltcore.discovery.binding import Entry
    from ltcore.training.step import StepForward, Update

#: Eager steps with full batches before the first is recorded: libraries choose their algorithms, optimisers begin.
EAGER = 3
#: How many kinds of batches are recorded, such as mixed and plain ones; each holds the memory of a step.
MOST = 4


class Recorder(Protocol):
    """Records what a function computes on the device, and computes it again."""

    def record(self, function: Callable[[], Any]) -> Any:
        """Call the function once while nothing is computed; what it gives is filled by `replay`."""

    def replay(self) -> None:
        """Compute everything again, from the same memory and into the same memory."""


class _CudaGraph:
    """PyTorch's CUDA graph."""

    def __init__(self, generators: list[torch.Generator]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self._graph.register_generator_state(generator)

    def record(self, function: Callable[[], Any]) -> Any:
        """See `Recorder`."""
        # The thread that pins decoded images goes on meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            return function()

    def replay(self) -> None:
        """See `Recorder`."""
        self._graph.replay()


#: By kind of device, what records on it, given the generators of methods.
RECORDERS: dict[str, Callable[[list[torch.Generator]], Recorder]] = {"cuda": _CudaGraph}


#: What of a context has other values in other epochs, and what in every step.
_OF_THE_EPOCH = {"epoch"}
_OF_THE_STEP = {"step", "learning_rate", "cpu_generator", "images", "training_features", "validation_features"}


def _noting(name: str) -> property:
    def read(self: Any) -> Any:
        self.reads.add(name)
        return getattr(super(_Watched, self), name)

    return property(read)


#: A context that notes in ``reads`` what is read of it, while a method's hooks are recorded.
_Watched: type[Context] = type(
    "_Watched", (Context,), {name: _noting(name) for name in (*_OF_THE_EPOCH, *_OF_THE_STEP, "generator")}
)


@contextmanager
def _watching(contexts: Mapping[str, Context]) -> Iterator[dict[str, set[str]]]:
    """Note what is read of contexts; by their names."""
    noted: dict[str, set[str]] = {}
    try:
        for name, context in contexts.items():
            context.__class__ = _Watched
            noted[name] = context.reads = set()  # type: ignore[attr-defined]
        yield noted
    finally:
        for context in contexts.values():
            context.__class__ = Context


class _Reading(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes where the tensors lie that operations take."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pointers: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = [each for each in tree_leaves((args, kwargs or {})) if isinstance(each, Tensor)]
        self.pointers |= {each.data_ptr() for each in taken if each.layout == torch.strided}
        return function(*args, **(kwargs or {}))


class _Recorded:
    """A step as it was recorded.

    Attributes:
        inputs: what a batch is copied into, by name.
        losses: names of the loss terms.
        values: the terms, and behind them their sum; filled by each replay.
        gradients: of each parameter of the model; None where it has none.
        state: what methods and network keep in Python.
        placed: modes of the network's modules, and where its tensors lie.
        draws: contexts whose methods draw on the device.
        per_epoch: whether a method reads the epoch, so that another one may be another step.
        begun: whether there was an update before one was recorded.
    """

    def __init__(self, batch: Batch, class_weights: Tensor | None, generators: list[torch.Generator], kind: str):
        self.inputs = {name: tensor.clone() for name, tensor in tensors_of(batch, class_weights).items()}
        self.batch, self.class_weights = _batch_of(batch, self.inputs), self.inputs.get("class_weights")
        self.shapes, self.layout = _shapes(self.inputs), batch.layout
        self.forward = RECORDERS[kind](generators)
        self.update: Recorder | None = None
        self.begun = False
        self.losses: list[str] = []
        self.values = torch.empty(0)
        self.gradients: list[tuple[Tensor, Tensor | None]] = []
        self.state: dict[str, State] = {}
        self.placed: list[Any] = []
        self.draws: list[Context] = []
        self.per_epoch = False

    def fits(self, batch: Batch, class_weights: Tensor | None) -> bool:
        """Whether a batch is like the one that was recorded."""
        return _shapes(tensors_of(batch, class_weights)) == self.shapes and bool(batch.layout == self.layout)


def tensors_of(batch: Batch, class_weights: Tensor | None) -> dict[str, Tensor]:
    """What differs from step to step and comes from outside, by name."""
    records = {"": batch, **batch.extras}
    found = {(key, field.name): getattr(each, field.name) for key, each in records.items() for field in fields(each)}
    tensors = {f"{key}.{name}": each for (key, name), each in found.items() if isinstance(each, Tensor)}
    return tensors if class_weights is None else {**tensors, "class_weights": class_weights}


def _batch_of(batch: Batch, tensors: Mapping[str, Tensor]) -> Batch:
    """The batch with other tensors, named as `tensors_of` names them."""

    def told(key: str, record: Batch) -> Batch:
        names = {field.name: f"{key}.{field.name}" for field in fields(record)}
        own: dict[str, Any] = {name: tensors[full] for name, full in names.items() if full in tensors}
        return replace(record, **own)

    return replace(told("", batch), extras={key: told(key, each) for key, each in batch.extras.items()})


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: (each.shape, each.dtype) for name, each in tensors.items()}


class WholeStep(Observer):
    """Takes the place of a stage's forward pass and of its update.

    Args:
        forward: the eager forward pass.
        update: the eager update, with a fused optimiser.
        entries: the stage's methods.
        contexts: of methods, by their names in the recipe.
        moving: names of methods with hooks that run in Python in every step.
        stage: the stage.
        record: gets what became of it, and says what became of it before a run was killed.
    """

    def __init__(
        self,
        forward: StepForward,
        update: Update,
        entries: Sequence[Entry],
        contexts: Mapping[str, Context],
        moving: set[str],
        stage: Stage,
        record: AccelerationRecord,
    ) -> None:
        self._eager_forward, self._eager_update, self._stage = forward, update, stage
        self._entries = {entry.key: entry for entry in entries}
        self._contexts = {key: contexts[key] for key in ("", *self._entries) if key in contexts}
        self._moving, self._result = sorted(moving), record
        self._model, self._size, self._eager_steps = forward.model, 0, 0
        self._variants: list[_Recorded] = []
        self._recorded: _Recorded | None = None
        self._replayed = False
        device = next(forward.model.parameters()).device
        self._kind, self.autocast = device.type, forward.autocast
        rates_as_tensors(update.optimizer, device)

    # -- what a step calls -----------------------------------------------------------------------------------------

    def __call__(self, batch: Batch, class_weights: Tensor | None) -> Losses:
        """The weighted loss terms of a batch; their gradients are computed where they are replayed.

        Raises:
            RunError: a step cannot be recorded, or is not what an eager one is.
        """
        size = len(batch.targets)
        batch = self._eager_forward.hooks.call(mix_inputs, batch)
        self._replayed = False
        if size == self._size:
            if self._eager_steps < EAGER:
                self._eager_steps += 1
            else:
                self._recorded = self._fitting(batch, size, class_weights)
                self._replayed = self._recorded is not None
        if not self._replayed or self._recorded is None:
            return self._eager_forward.losses(batch, size, class_weights)
        if self._moving:
            self._still_as_recorded(self._recorded)
        return self._replay(self._recorded, batch, class_weights)

    def update(self, losses: Losses, rate: float) -> Tensor:
        """Take a step with a learning rate; returns the whole loss, 0-d and detached."""
        recorded = self._recorded
        if not self._replayed or recorded is None:
            return self._eager_update(losses, rate)
        set_learning_rate(self._eager_update.optimizer, rate)
        if recorded.update is None and not self._begun(recorded):
            self._eager_update.take()
        else:
            recorded.update = recorded.update or self._record_update(recorded)
            recorded.update.replay()
        return recorded.values[-1]

    def epoch_started(self, loop: Loop) -> None:
        """Note how many images a full batch has, and record anew what is no longer as it was recorded."""
        self._size = len(loop.batches[0]) if loop.batches else 0
        kept = self._variants and not any(recorded.per_epoch for recorded in self._variants)
        now = self._states() if kept else {}
        if any(recorded.state != now for recorded in self._variants):
            self._variants, self._recorded = [], None

    def stage_ended(self, loop: Loop) -> None:
        """Give the memory back."""
        if "features_difference" not in self._result:
            self._result["chosen"], self._result["why"] = "off", f"no {EAGER + 1} batches had the full size"
        self._variants, self._recorded = [], None
        self._model.zero_grad(set_to_none=True)

    # -- replayed --------------------------------------------------------------------------------------------------

    def _replay(self, recorded: _Recorded, batch: Batch, class_weights: Tensor | None) -> Losses:
        for name, tensor in tensors_of(batch, class_weights).items():
            recorded.inputs[name].copy_(tensor)
        for context in recorded.draws:
            context.stand()
        recorded.forward.replay()
        for parameter, gradient in recorded.gradients:  # another step, eager or recorded, has left those of its own
            if parameter.grad is not gradient:
                parameter.grad = gradient
        # Copies: the next replay writes into the same memory.
        return dict(zip(recorded.losses, recorded.values[:-1].clone().unbind(), strict=True))

    # -- recorded --------------------------------------------------------------------------------------------------

    def _fitting(self, batch: Batch, size: int, class_weights: Tensor | None) -> _Recorded | None:
        """The step that was recorded for batches like this one, or is now; None where there are too many kinds."""
        for recorded in self._variants:
            if recorded.fits(batch, class_weights):
                return recorded
        if len(self._variants) == MOST:
            return None
        self._variants.append(self._record(batch, size, class_weights))
        return self._variants[-1]

    def _record(self, batch: Batch, size: int, class_weights: Tensor | None) -> _Recorded:
        """Record a step, and compare it with an eager one; afterwards everything is as it was.

        Raises:
            RunError: it cannot be recorded, or is not what an eager one is.
        """
        kept, standing = Kept(self._model), [context.standing() for context in self._contexts.values()]
        own = [each for entry in self._entries.values() for each in tensors_in(entry.method).values()]
        values = [
            (each, each.detach().clone()) for each in own if not each.requires_grad and each.device.type == self._kind
        ]

        def put_back() -> None:
            kept.put_back()
            with torch.no_grad():
                for tensor, value in values:
                    tensor.copy_(value)
            for put in standing:
                put()

        with self._or_an_error(), waiting_allowed(), one_message(put_back):
            if reason := unwatched(self._model):
                raise Failed(reason)
            if any(each.requires_grad for each in tensors_of(batch, class_weights).values()):
                raise Failed("a method computes what the network is given from what trains (mix_inputs, class_weights)")
            return self._compared(batch, size, class_weights, kept, put_back)

    @contextmanager
    def _or_an_error(self) -> Iterator[None]:
        """What cannot be had ends the run, because the recipe asks for it by name."""
        try:
            yield
        except Failed as failure:
            self._variants = []
            self._model.zero_grad(set_to_none=True)
            raise RunError(
                f"stage '{self._stage.name}': accelerate: step_graphs cannot be had: {failure}; use accelerate: graphs"
            ) from failure

    def _compared(
        self, batch: Batch, size: int, class_weights: Tensor | None, kept: Kept, put_back: Callable[[], None]
    ) -> _Recorded:
        def eager(batch: Batch) -> Seen:
            put_back()
            self._model.zero_grad(set_to_none=True)
            losses = self._eager_forward.losses(batch, size, class_weights)
            values = torch.stack(list(losses.values()))
            values.sum().backward()  # type: ignore[no-untyped-call]
            return seen(values)

        def seen(values: Tensor) -> Seen:
            gradients = [each.grad for each in self._model.parameters() if each.requires_grad]
            return values.detach().clone(), kept.buffers(), [None if g is None else g.clone() for g in gradients]

        epsilon = rounding(self._stage.precision, self._eager_forward.autocast)
        first = eager(batch)
        signs = torch.rand(batch.images.shape, generator=torch.Generator().manual_seed(0)).to(batch.images) - 0.5
        near = eager(replace(batch, images=batch.images * (1 + epsilon * signs.sign())))
        put_back()
        self._model.zero_grad(set_to_none=True)
        recorded = self._made(batch, size, class_weights)
        put_back()
        self._replay(recorded, batch, class_weights)
        found = difference(self._model, first, seen(recorded.values[:-1]))
        natural = difference(self._model, first, near)
        self._result["features_difference"], self._result["gradients_difference"] = found.largest
        if found.finite and (reason := found.wrong(natural, epsilon, "an eager step", "its losses")):
            raise Failed(reason)
        return recorded

    def _made(self, batch: Batch, size: int, class_weights: Tensor | None) -> _Recorded:
        """A recorded step of a batch; no kernel has run."""
        for context in self._contexts.values():
            context.stand()  # a generator cannot be seeded while a graph is recorded
        generators = [context.generator for context in self._contexts.values()]
        recorded = _Recorded(batch, class_weights, generators, self._kind)
        before, drawn = self._states(), self._hosts_randomness()
        tensors = {key: tensors_in(entry.method) for key, entry in self._entries.items()}  # which no other may lie at

        def step() -> tuple[list[str], Tensor]:
            losses = self._eager_forward.losses(recorded.batch, size, recorded.class_weights)
            values = torch.stack(list(losses.values()))
            total = values.sum()
            total.backward()  # type: ignore[no-untyped-call]
            return list(losses), torch.cat([values.detach(), total.detach()[None]])

        with _watching(self._contexts) as reads, _Reading() as reading:
            recorded.losses, recorded.values = recorded.forward.record(step)
        if drawn != self._hosts_randomness():
            raise Failed("a step draws from Python's, NumPy's or the CPU's global random numbers")
        self._refuse(before, reads)
        self._refuse_handed_on(tensors, reading.pointers)
        recorded.gradients = [(each, each.grad) for each in self._model.parameters()]
        recorded.per_epoch = any(each & _OF_THE_EPOCH for each in reads.values())
        recorded.draws = [self._contexts[key] for key, each in reads.items() if "generator" in each]
        recorded.state, recorded.placed = self._states(), self._placed()
        return recorded

    def _begun(self, recorded: _Recorded) -> bool:
        """Whether the optimiser has what it keeps for every gradient; where it has not, an eager update makes it."""
        state, before, recorded.begun = self._eager_update.optimizer.state, recorded.begun, True
        return before or all(state.get(each) for each, gradient in recorded.gradients if gradient is not None)

    def _record_update(self, recorded: _Recorded) -> Recorder:
        """The update as a graph, once it does what the eager one does; afterwards nothing is updated.

        Raises:
            RunError: it cannot be recorded, or is not what an eager one is.
        """
        state = self._eager_update.optimizer.state
        given = [(each.detach(), gradient) for each, gradient in recorded.gradients if gradient is not None]
        moved = [each for pair in given for each in pair]  # gradients are clipped in place
        moved += [each for values in state.values() for each in values.values() if isinstance(each, Tensor)]
        before = [each.clone() for each in moved]

        def put_back() -> None:
            for tensor, value in zip(moved, before, strict=True):
                tensor.copy_(value)

        def seen(take: Callable[[], None]) -> list[Tensor]:
            put_back()
            take()
            return [each.clone() for each in moved]

        with self._or_an_error(), waiting_allowed(), one_message(put_back):
            expected, recorder = seen(self._eager_update.take), RECORDERS[self._kind]([])
            put_back()
            recorder.record(self._eager_update.take)
            if (far := largest(expected, seen(recorder.replay))) > TIMES[0] * EPSILON["fp32"]:
                raise Failed(f"its first update differs from an eager one by {far:.2g} of what is updated")
        return recorder

    # -- whether it holds ------------------------------------------------------------------------------------------

    def _states(self) -> dict[str, State]:
        own = {key: python_state(entry.method, self._kind) for key, entry in self._entries.items()}
        return own | {"": python_state((self._model.backbone, self._model.classifier), self._kind)}

    def _placed(self) -> list[Any]:
        """What of the network a hook between two steps may change, as far as there is time to look in every step."""
        tensors = [*self._model.parameters(), *self._model.buffers()]
        modes = [each.training for each in self._model.modules()]
        return [*modes, *(each.requires_grad for each in tensors), *(each.data_ptr() for each in tensors)]

    def _hosts_randomness(self) -> list[Any]:
        drawn = [random.getstate(), str(np.random.get_state())]
        return drawn if self._kind == "cpu" else [*drawn, torch.get_rng_state().tolist()]

    def _still_as_recorded(self, recorded: _Recorded) -> None:
        """A method whose hooks run in Python in every step must leave alone what its other hooks were recorded with.

        Raises:
            RunError: it does not.
        """
        if recorded.placed != self._placed():
            with self._or_an_error():
                whose = " or ".join(self._entries[name].whose for name in self._moving)
                raise Failed(f"{whose} changes modes, gradients or memory of the network's parameters between steps")
        for name in self._moving:
            if changed := changes(recorded.state[name], python_state(self._entries[name].method, self._kind)):
                with self._or_an_error():
                    raise Failed(f"{self._entries[name].whose} changes its{changed[0]} in every step")

    def _refuse(self, before: Mapping[str, State], reads: Mapping[str, set[str]]) -> None:
        """What a replay would not do.

        Raises:
            Failed: a method's step has more to it than kernels.
        """
        for key, entry in self._entries.items():
            after = python_state(entry.method, self._kind)
            if hidden := unknown(after):
                raise Failed(f"{entry.whose} keeps {after[hidden[0]][1]} in its{hidden[0]}, which cannot be watched")
            for path in changes(before[key], after):
                was, now = before[key].get(path), after.get(path)
                # What a step puts there anew for its later hooks is recorded with it.
                if not all(isinstance(each, tuple) and each[0] == "tensor" for each in (was, now)):
                    raise Failed(f"{entry.whose} changes its{path} in every step")
        if changed := changes(before[""], python_state((self._model.backbone, self._model.classifier), self._kind)):
            raise Failed(f"the network changes its{changed[0]} in every step")
        for key, names in reads.items():
            if of_the_step := sorted(names & _OF_THE_STEP):
                whose = self._entries[key].whose if key in self._entries else "core"
                raise Failed(f"{whose} reads context.{of_the_step[0]} in its step, which is Python's")

    def _refuse_handed_on(self, before: Mapping[str, Mapping[str, Tensor]], read: set[int]) -> None:
        """What a step reads and replaces by another tensor would be read from the first one in every replay.

        Raises:
            Failed: a method does so.
        """
        for key, entry in self._entries.items():
            after = tensors_in(entry.method)
            for path, tensor in before[key].items():
                if path in after and after[path].data_ptr() != tensor.data_ptr() and tensor.data_ptr() in read:
                    raise Failed(f"{entry.whose} puts another tensor in its{path} in every step; write into it (copy_)")
