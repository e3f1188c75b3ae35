"""What grows with every step, and what goes over all training images in every step; and models that must stay."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ltcore.contract.hookspecs import HOOKS
from ltcore.testing.inspecting import Call, Inspector
from ltcore.testing.state import held_within, same

if TYPE_CHECKING:
    from ltcore.contract.context import RunState
    from ltcore.training.loop import Loop

_KEEP = (
    "keep numbers, not tensors that hang on a graph: `detach()`, and a buffer of a fixed size that is written over "
    "(`copy_`); what is only for one step goes through `Features.keeping`"
)
_ONCE = "ask in on_epoch_start, or in on_stage_start where the backbone is frozen, and keep what is needed in a buffer"
_COPY = "change a copy (`copy.deepcopy`, or `x / y` in place of `x /= y`): others and later stages are given the same"
_FEWEST = 3


class Growth(Inspector):
    """Live tensors, and what methods hold, step by step in the last epoch of each stage.

    Only what is made in that epoch is looked at: what there was before is put out of the collector's sight.
    """

    def __init__(self, notes: Any) -> None:
        super().__init__(notes)
        self._live: list[int] = []
        self._held: list[dict[str, int]] = []
        self._watching = False

    def epoch_started(self, loop: Loop) -> None:
        """Begin to count."""
        self._watching = loop.state.epoch == loop.epochs - 1
        self._live, self._held = [], []
        if self._watching:
            gc.freeze()

    def step_ended(self, loop: Loop) -> None:
        """Count."""
        if self._watching:
            self._live.append(sum(issubclass(type(each), Tensor) for each in gc.get_objects()))
            methods = loop.model.methods.named_children()
            self._held.append({f"{key}.{path}": size for key, method in methods for path, size in held_within(method)})

    def epoch_ended(self, loop: Loop) -> None:
        """Judge."""
        if not self._watching:
            return
        self._watching = False
        gc.unfreeze()
        if len(self._live) < _FEWEST:
            return
        grown = [path for path in self._held[-1] if _grows([held.get(path, 0) for held in self._held])]
        more = (self._live[-1] - self._live[0]) / (len(self._live) - 1)
        if grown:
            what = " and ".join(f"'{path}'" for path in grown)
            self.notes.fault("growth", f"what {what} holds grows with every step", _KEEP)
        elif _grows(self._live):
            self.notes.fault(
                "growth",
                f"{more:.3g} more tensors live after every step, held outside of the method (a list of its module?)",
                _KEEP,
            )


def _grows(sizes: list[int]) -> bool:
    return all(before < after for before, after in pairwise(sizes))


class Asked(Inspector):
    """What hooks ask the context for: features of whole splits, and the frozen models of earlier stages."""

    def __init__(self, notes: Any) -> None:
        super().__init__(notes)
        #: Hook, stage, epoch -> the steps in which a pass was made.
        self._passes: dict[tuple[str, str, int], set[int]] = {}
        #: What was handed out, with a copy as it was then.
        self._handed: dict[str, tuple[Tensor, Tensor]] = {}
        #: Hooks that have asked for validation images.
        self.validation: set[str] = set()

    def attach(self, state: RunState) -> None:
        """Stand between the context and what answers it."""
        provider: Any = state.provider
        for name in ("features", "images"):
            if hasattr(provider, name):
                setattr(provider, name, self._asking(state, provider, getattr(provider, name), name))

    def _asking(self, state: RunState, provider: Any, answer: Callable[..., Any], name: str) -> Callable[..., Any]:
        def asked(split: str, *about: Any) -> Any:
            hook, before = self.notes.where, provider._kept.get((split, *about)) if name == "features" else None
            with self.notes.aside() if name == "images" else nullcontext():  # which reads them on the host
                found = answer(split, *about)
            if not hook or self.notes.quiet:
                return found
            if split == "val":
                self.validation.add(hook)
            if name == "features":
                whole = provider._kept.get((split, *about)) is not before
                self._hand_out(f"{split} {about}", found)
            else:
                whole = len(found) >= len(state.training_targets)
            if whole and HOOKS[hook].called == "step":
                steps = self._passes.setdefault((hook, state.stage, state.epoch), set())
                steps.add(state.step)
                if len(steps) >= _FEWEST:
                    what = {"train": "training", "val": "validation"}.get(split, split)
                    self.notes.fault(
                        "passes", f"{hook} has all {what} images go through the network in every step", _ONCE
                    )
            return found

        return asked

    def _hand_out(self, key: str, found: Tensor) -> None:
        if key not in self._handed or self._handed[key][0] is not found:
            self._handed[key] = (found, found.detach().clone())

    def before(self, call: Call) -> dict[str, Any]:
        """Copies of the frozen models."""
        return dict(_frozen(call.state))

    def after(self, call: Call, answer: Any, before: dict[str, Any]) -> None:
        """See that what was handed out is as it was."""
        after = dict(_frozen(call.state, copied=False))
        for name, value in before.items():
            now = after.get(name)
            changed = not same(value, now) if isinstance(value, Tensor) and isinstance(now, Tensor) else value != now
            if changed:
                self.notes.fault(
                    "frozen_models", f"{call.hook.name} changed {name}, which context.frozen_model() gives", _COPY
                )
        for key, (tensor, copy) in list(self._handed.items()):
            if not same(tensor, copy):
                del self._handed[key]
                split = "training" if key.startswith("train") else "validation"
                self.notes.fault("inputs", f"{call.hook.name} changed context.{split}_features() in place", _COPY)


def _frozen(state: RunState | None, copied: bool = True) -> Iterator[tuple[str, Any]]:
    """What there is of the earlier stages' models, by name; in copies, or as it is."""
    models: dict[str, nn.Module] = {} if state is None else getattr(state.provider, "_frozen", {})
    for stage, model in models.items():
        for name, tensor in model.state_dict().items():
            yield f"{name} of stage '{stage}'", tensor.clone() if copied else tensor
        yield f"the train or eval mode of stage '{stage}'", [module.training for module in model.modules()]
        yield f"what requires a gradient of stage '{stage}'", [each.requires_grad for each in model.parameters()]
