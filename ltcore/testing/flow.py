"""Whether a method lets the gradient through to the backbone, and whether its own modules get one that is not zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltcore.contract.model import public_name
from ltcore.contract.records import Features
from ltcore.testing.inspecting import Call, Inspector

if TYPE_CHECKING:
    from ltcore.contract.model import Model
    from ltcore.training.loop import Loop

#: In a method's `breaks`: it cuts the gradient to the backbone off, and means it.
ON_PURPOSE = "backbone_gradient"
_CUT = (
    "leave detach(), .data and no_grad() to what you make or measure, and let real rows and logits pass as they came; "
    f"a method that cuts on purpose says so: breaks = frozenset({{'{ON_PURPOSE}'}})"
)
_IDLE = (
    "something multiplies it by 0: a factor that starts at 0 on both sides, a ReLU that lets nothing through, a mask "
    "that is always 0, or a target that is detached"
)


class Gradients(Inspector):
    """The way back from the loss, and what arrives."""

    def __init__(self, notes: Any) -> None:
        super().__init__(notes)
        self._cut = False
        #: Stage -> whether the backbone trains in it and has got a gradient that is not zero.
        self._reached: dict[str, bool] = {}
        #: A method's modules -> the same.
        self._moved: dict[str, bool] = {}
        self._purposely: set[str] = set()

    def before(self, call: Call) -> None:
        """Note whose methods cut on purpose."""
        if ON_PURPOSE in call.entry.method.breaks:
            self._purposely.add(call.entry.key)

    def after(self, call: Call, answer: Any, before: Any) -> None:
        """See that what comes out of a hook hangs on what went in."""
        if not call.in_step or call.hook.kind not in ("fold", "one") or call.entry.key in self._purposely:
            return
        if answer is None or (call.hook.problem is not None and call.hook.problem(answer, *call.values)):
            return  # which is told already
        given = next(iter(call.values), None)
        source, out = _carrier(given), _carrier(answer)
        if source is None or out is None or not source.requires_grad or not torch.is_grad_enabled():
            return
        if not isinstance(given, Features):
            if not out.requires_grad:
                self._note(
                    f"{call.hook.name} cuts the gradient off: what it returns does not hang on its {_first(call)}"
                )
            return
        cut, rows = _cut_rows(given, answer, source, out)
        if cut:
            self._note(f"{call.hook.name} cuts the gradient to the backbone off for {cut} of {rows} real rows")

    def _note(self, message: str) -> None:
        self._cut = True
        self.notes.fault("gradient_flow", message, _CUT)

    def graded(self, loop: Loop, model: Model, trained: set[str]) -> None:
        """Note what has arrived in a step."""
        stage = loop.stage.name
        for name, parameter in model.named_parameters():
            if name not in trained:
                continue
            moved = parameter.grad is not None and bool((parameter.grad != 0).any())
            if name.startswith("backbone."):
                self._reached[stage] = self._reached.get(stage, False) or moved
            elif name.startswith("methods.") and parameter.grad is not None:
                module = public_name(name, model.backbone).rpartition(".")[0]
                self._moved[module] = self._moved.get(module, False) or moved

    def ended(self, model: Model) -> None:
        """Judge the whole training."""
        for stage, reached in self._reached.items():
            if not (reached or self._cut or self._purposely):
                self._note(f"nothing of the backbone got a gradient in stage '{stage}', in which it trains")
        for module, moved in self._moved.items():
            if not moved:
                self.notes.fault("idle_modules", f"the gradient of '{module}' is zero in every step", _IDLE)


def _first(call: Call) -> str:
    return next(iter(call.given))


def _carrier(value: Any) -> Tensor | None:
    """The tensor of a hook's first argument, or of its answer, through which gradients flow."""
    if isinstance(value, Features):
        return value.features
    return value if isinstance(value, Tensor) else None


def _cut_rows(given: Features, answer: Features, source: Tensor, out: Tensor) -> tuple[int, int]:
    """How many real rows came in whose gradient the real rows that come out no longer pass on; and of how many."""
    real = ~answer.synthetic
    kept = ~given.synthetic & torch.isin(given.source_index, answer.source_index[real])
    if not out.requires_grad:
        return int(kept.sum()), int(kept.sum())
    if not bool(real.any()):
        return 0, 0
    flat = out.flatten(1)
    pattern = torch.cos(torch.arange(flat.numel(), device=flat.device)).view_as(flat).to(flat.dtype)
    whole = (flat * pattern)[real].sum()
    gradient: Tensor | None = torch.autograd.grad(whole, source, retain_graph=True, allow_unused=True)[0]
    if gradient is None:
        return int(kept.sum()), int(kept.sum())
    return int((kept & ~(gradient.flatten(1) != 0).any(1)).sum()), int(kept.sum())
