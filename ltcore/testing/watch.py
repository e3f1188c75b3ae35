"""Looks on while a method trains: at what its hooks are given, do and return, and at the gradients of a step."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ltcore.contract.hookspecs import HOOKS
from ltcore.contract.model import public_name
from ltcore.testing.costs import Asked, Growth
from ltcore.testing.devices import Devices
from ltcore.testing.faults import Fault
from ltcore.testing.flow import Gradients
from ltcore.testing.image_functions import try_image_function
from ltcore.testing.inspecting import Call, Inspector
from ltcore.testing.randomness import GlobalStates, TorchState
from ltcore.testing.records import AnswerTypes, Records
from ltcore.testing.state import path_to, same
from ltcore.testing.synchronisation import Waits
from ltcore.testing.test_split import TestSplit

if TYPE_CHECKING:
    from ltcore.contract.context import RunState
    from ltcore.contract.model import Model
    from ltcore.contract.records import Batch
    from ltcore.discovery.binding import Answers, Entry, Implementation
    from ltcore.plan.plan import Plan

Forward = Callable[["Batch", "Tensor | None"], dict[str, Tensor]]

#: Hooks that return terms of a method's loss.
_MAKING = {"augment_features", "auxiliary_losses"}


class Watch:
    """What is seen of the calls of some methods' hooks in a run.

    Python's and NumPy's global random states are the same before every hook in every run, and restored after it. So a
    method that uses them is found by its use, and not again by every check that compares two runs.

    Args:
        names: the methods, by their names in the recipe; those that build data or backbone included.
        looking: look at everything; else only count the calls.
        waiting: look only at what waits for the device, see `ltcore.testing.synchronisation`.

    Attributes:
        inspectors: what else looks at each call and step, see `ltcore.testing.inspecting`.
        around: stands around each call.
    """

    def __init__(self, names: frozenset[str] = frozenset(), looking: bool = False, waiting: bool = False) -> None:
        self.names, self.looking, self.waiting = names, looking, waiting
        self.asked = Asked(self)
        self.inspectors: list[Inspector] = []
        if looking:
            self.inspectors = [
                AnswerTypes(self),
                Records(self),
                Gradients(self),
                Growth(self),
                self.asked,
            ]
        self.around: Callable[[Call], AbstractContextManager[Any]] = lambda _: nullcontext()
        self.calls: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.state: RunState | None = None
        self.trained: set[str] = set()
        self.with_gradient: set[str] = set()
        #: What the methods held outside of their state before the first step, see `ltcore.testing.state`.
        self.held: dict[str, str] = {}
        #: The terms that methods have made at their taps in this step; and those that make all of theirs there.
        self._at_tap: dict[str, set[str]] = {}
        self._at_taps_only: set[str] = set()
        self.where, self.quiet = "", False
        self.globals = GlobalStates()

    def fault(self, check: str, message: str, change: str) -> None:
        """Note a fault, once."""
        found = Fault(check, message, change)
        if found not in self.faults:
            self.faults.append(found)

    def attach(self, state: RunState) -> None:
        """The run's parts are there."""
        self.state = state
        if self.looking:
            self.asked.attach(state)

    def alone(self) -> AbstractContextManager[None]:
        """While methods are made: global random states as they always are, and whether they are left so."""
        return self._random("__init__", "free")

    def wrapped(self, plan: Plan) -> Plan:
        """The plan with the methods' hooks watched."""
        for entry in (plan.data, plan.backbone, *plan.entries.values()):
            hooks = {answer.hook for found in plan.start.values() for answer in found if answer.entry is entry}
            if entry.key in self.names and entry.method.auxiliary and not hooks & _MAKING:
                self.fault(
                    "auxiliary",
                    f"it declares {sorted(entry.method.auxiliary)} and does not implement auxiliary_losses",
                    "implement the hook, or take the names out of `auxiliary`",
                )
            elif "auxiliary_losses" not in hooks:
                self._at_taps_only.add(entry.key)
        return replace(
            plan,
            start=self._watched(plan.start),
            answers={role: self._watched(answers) for role, answers in plan.answers.items()},
            stages=tuple(replace(stage, answers=self._watched(stage.answers)) for stage in plan.stages),
            calibration=self._watched(plan.calibration),
            adaptation=self._watched(plan.adaptation),
        )

    def _watched(self, answers: Answers) -> Answers:
        return {
            hook: [self._watch(answer) if answer.entry.key in self.names else answer for answer in found]
            for hook, found in answers.items()
        }

    def _watch(self, answer: Implementation) -> Implementation:
        function, hook = answer.function, answer.hook

        @functools.wraps(function)
        def watched(*values: Any) -> Any:
            self.calls[hook] += 1
            call = Call(answer.entry, HOOKS[hook], dict(zip(HOOKS[hook].arguments, values, strict=True)), self.state)
            given = {name: call.given[name] for name in answer.arguments}
            with self.aside():
                before = self._seen(given, hook, answer.entry.key) if self.looking else {}
                noted = [inspector.before(call) for inspector in self.inspectors]
            outer, self.where = self.where, hook
            devices = Devices(self, hook) if self.looking and call.in_step else None
            try:
                with (
                    self._random(hook, "dropout" if call.in_step else "drawn"),
                    self._test_split(hook),
                    self.around(call),
                    devices or nullcontext(),
                ):
                    returned = function(**given)
            finally:
                self.where = outer
            if devices is not None:
                devices.look(returned)
            with self.aside():
                for inspector, each in zip(self.inspectors, noted, strict=True):
                    inspector.after(call, returned, each)
                if self.looking:
                    self._compare(hook, before, self._seen(given, hook, answer.entry.key))
                if self.looking and hook in _MAKING:
                    self._compare_terms(answer.entry, hook, returned)
                if self.looking and hook == "image_transform" and returned is not None and self.state is not None:
                    try_image_function(returned, self, self.state)
            if hook == "build_sampler" and returned is not None:
                return _WatchedSampler(returned, self)
            return returned

        return replace(answer, function=watched, arguments=HOOKS[hook].arguments)

    def _test_split(self, hook: str) -> AbstractContextManager[None]:
        return TestSplit(self, hook) if self.looking else nullcontext()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done in the block is not the methods' doing."""
        outer, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = outer

    @contextmanager
    def _random(self, hook: str, torch_state: TorchState) -> Iterator[None]:
        outer = self.quiet
        try:
            with self.globals.fixed(torch_state) as used:
                try:
                    yield
                finally:
                    self.quiet = True  # the comparison is ours
        finally:
            self.quiet = outer
        for what, change in used:
            self.fault("randomness", f"{hook} {what}", change)

    # -- arguments, context and model -----------------------------------------------------------------------------

    def _seen(self, given: dict[str, Any], hook: str, key: str) -> dict[str, Any]:
        """Copies of what a hook of the method `key` may look at and not change.

        One that writes may change what trains and learns. What a method has added to the network is its own.
        """
        writes = HOOKS[hook].writes
        learning = writes or hook == "compute_gradients"  # in which the forward pass is
        seen: dict[str, Any] = {}
        for name, value in given.items():
            if isinstance(value, Tensor):
                seen[f"its argument '{name}'"] = value
            elif is_dataclass(value):
                for field in fields(value):
                    seen[f"its argument '{name}.{field.name}'"] = getattr(value, field.name)
        if self.state is None:
            return _copied(seen)
        state = self.state
        for name in ("class_counts", "training_targets", "validation_targets", "progress"):
            seen[f"context.{name}"] = getattr(state, name)
        for part in ("backbone", "classifier"):
            module: nn.Module = getattr(state.model, part)
            seen[f"the train or eval mode of the model's {part}"] = [m.training for m in module.modules()]
            seen[f"what of the model's {part} requires a gradient"] = [p.requires_grad for p in module.parameters()]
            for name, tensor in module.state_dict(keep_vars=True).items():
                weight = isinstance(tensor, nn.Parameter)
                own = part == "backbone" and state.model.backbone.added_by.get(name) == key
                if not own and not (writes and tensor.requires_grad if weight else learning and _learns(module, name)):
                    seen[f"context.model.{part}.{name}"] = tensor
        return _copied(seen)

    def _compare(self, hook: str, before: dict[str, Any], after: dict[str, Any]) -> None:
        for name, value in before.items():
            if not _equal(value, after.get(name)):
                self.fault(
                    "inputs",
                    f"{hook} changed {name}",
                    "work on a copy: others go on with what the hook was given (no in-place operations such as `add_` "
                    "or `x[...] = `; use `dataclasses.replace` for records)",
                )

    def _compare_terms(self, entry: Entry, hook: str, returned: Any) -> None:
        if hook == "augment_features":
            self._at_tap[entry.key] = set(getattr(returned, "losses", {}).get(entry.key, ()))
            if entry.key not in self._at_taps_only:
                return
        declared, found = set(entry.method.auxiliary), self._at_tap.pop(entry.key, set())
        if hook == "auxiliary_losses":
            found = found | set(returned if isinstance(returned, dict) else ())
        if declared != found:
            lacking, extra = sorted(declared - found), sorted(found - declared)
            parts = [f"left out {lacking}"] * bool(lacking) + [f"returned {extra}, which it does not declare"] * bool(
                extra
            )
            self.fault(
                "auxiliary",
                f"{hook} {' and '.join(parts)}; the class declares {sorted(declared)}",
                "return every term of the class's `auxiliary` in every step, 0 where it is off, and no other",
            )

    # -- a step ----------------------------------------------------------------------------------------------------

    def step(self, forward: Forward, model: Model, names: set[str]) -> Forward:
        """A step's forward pass, looked at."""
        if not (self.looking or self.waiting):
            return forward

        def watched(batch: Batch, class_weights: Tensor | None) -> dict[str, Tensor]:
            with Waits(self):
                terms = forward(batch, class_weights)
            if self.looking:
                self._look_at_graph(terms, model, names)
            return terms

        return watched

    def _look_at_graph(self, terms: dict[str, Tensor], model: Model, names: set[str]) -> None:
        """Whatever takes part in the loss and requires a gradient is the optimiser's."""
        known = {id(parameter): name for name, parameter in model.named_parameters()}
        for leaf in leaves(terms.values()):
            name = known.get(id(leaf))
            if name in names:
                continue
            if name is not None:
                shown = f"the parameter '{public_name(name, model.backbone)}', made or unfrozen in the stage,"
            else:
                paths = (
                    path_to(method, leaf) for method in (*model.methods.children(), model.classifier, model.backbone)
                )
                path = next((path for path in paths if path), None)
                shown = f"a tensor of shape {list(leaf.shape)}" + (f", held in '{path}'," if path else "")
            self.fault(
                "gradients",
                f"{shown} takes part in the loss, and no optimiser sees it",
                "assign parameters and modules as attributes of the method (an nn.ParameterList or nn.ModuleList in "
                "place of a list) in __init__ or on_run_start",
            )

    def look_at_gradients(self, model: Model, names: set[str]) -> None:
        """Between the backward pass and the optimiser's step: who has a gradient, and whether it is finite."""
        if not self.looking:
            return
        self.trained |= names
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                continue
            shown = public_name(name, model.backbone)
            if name not in names:
                self.fault(
                    "gradients",
                    f"'{shown}' is frozen and got a gradient",
                    "leave `requires_grad` to core: the recipe's `trainable` says what trains",
                )
            self.with_gradient.add(name)
            if not bool(parameter.grad.isfinite().all()):
                self.fault(
                    "gradients",
                    f"the gradient of '{shown}' is not finite",
                    "look for sqrt, log, norm or a division at 0, also where its result is masked away by "
                    "torch.where: the gradient is NaN all the same",
                )


class _WatchedSampler:
    """A sampler whose draws must be functions of their arguments."""

    def __init__(self, sampler: Any, watch: Watch) -> None:
        self._sampler, self._watch = sampler, watch

    def steps_per_epoch(self) -> int:
        steps: int = self._sampler.steps_per_epoch()
        return steps

    def draw(self, steps: int, distribution: Tensor | None, generator: torch.Generator) -> Any:
        state = generator.get_state()
        with self._watch._random("the sampler's draw", "dropout"):
            drawn = self._sampler.draw(steps, distribution, generator)
        if self._watch.looking:
            with self._watch._random("the sampler's draw", "dropout"):
                again = self._sampler.draw(steps, distribution, torch.Generator().set_state(state))
            if len(again.indices) != len(drawn.indices) or not all(map(torch.equal, again.indices, drawn.indices)):
                self._watch.fault(
                    "seed",
                    "the sampler drew other batches for the same arguments",
                    "keep no state in the sampler: its generator is all the randomness there is",
                )
        return drawn


def leaves(tensors: Any) -> list[Tensor]:
    """The leaves of the autograd graph behind some tensors."""
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found[id(variable)] = variable
        waiting += [parent for parent, _ in node.next_functions if parent is not None]
    return list(found.values())


def _learns(module: nn.Module, buffer: str) -> bool:
    """Whether a buffer is of a module in train mode, such as the statistics of batch norm that is not frozen."""
    return module.get_submodule(buffer.rpartition(".")[0]).training


def _copied(seen: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in seen.items()}


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and same(a, b)
    return bool(a == b)
