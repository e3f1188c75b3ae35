"""The backbone of a stage compiled, or captured as CUDA graphs, from a batch's rows to the first tap behind it.

Hooks, classifier and losses run as ever around it. Nothing is used before it was compared with the eager backbone on
the stage's first batch. After that every buffer, random state and gradient is as it was.
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ltcore import ranks
from ltcore.errors import RunError
from ltcore.plan.acceleration import choice, obstacle, refused
from ltcore.training.loop import Loop, Observer
from ltcore.training.sameness import Kept, compared, rounding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ltcore.contract.backbone import Backbone
    from ltcore.contract.recipe import Stage
    from ltcore.contract.result import AccelerationRecord
    from ltcore.plan.acceleration import Choice
    from ltcore.plan.plan import Plan


class Piece(nn.Module):
    """The part of a backbone that is accelerated.

    Args:
        backbone: the network; its modules stay in the modes that they are in.
        gives: ``maps``, or ``pooled`` features.
        autocast: dtype of the forward pass; None for float32 throughout.
    """

    def __init__(self, backbone: Backbone, gives: str, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.backbone, self.gives, self.autocast = backbone, gives, autocast

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [N, C, H, W] to maps [N, D, H', W'] or pooled features [N, D]; of experts E * N."""
        # A graph would go on with the casts of its capture, so each pass casts the weights anew.
        low = self.autocast
        with torch.autocast(rows.device.type, low, enabled=low is not None, cache_enabled=False):
            maps = self.backbone.forward_maps(rows)
            return maps if self.gives == "maps" else self.backbone.pool(maps)


def _compiled(piece: Piece, rows: Tensor) -> Callable[[Tensor], Tensor]:
    """PyTorch's compiler, for these shapes; dropout draws what it draws in eager mode."""
    return torch.compile(piece, dynamic=False, options={"fallback_random": True})


def _graphed(piece: Piece, rows: Tensor) -> Callable[[Tensor], Tensor]:
    """PyTorch's own graphs of the forward and the backward pass.

    Every replay writes into the same memory, so what comes out is copied: a method may keep it.
    """
    make: Any = torch.cuda.make_graphed_callables
    told: dict[str, Any] = {"allow_unused_input": True}  # parameters behind the maps
    if "capture_error_mode" in inspect.signature(make).parameters:  # not in every version
        told["capture_error_mode"] = "thread_local"  # the thread that pins decoded images goes on meanwhile
    # Gradients are added up on the capture's stream. What adds them up cannot be made before: that breaks the capture.
    silence: Any = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if silence is not None:
        silence(False)
    with torch.autocast(rows.device.type, enabled=False):
        graphed = make(piece, (rows.clone(),), **told)
    return lambda rows: graphed(rows).clone()


#: By kind, what makes the quicker function from a piece and a batch's rows; it may run the piece as often as it likes.
MAKERS: dict[str, Callable[[Piece, Tensor], Callable[[Tensor], Tensor]]] = {"compile": _compiled, "graphs": _graphed}


class Accelerator(Observer):
    """Stands in for the eager backbone in the steps of a stage.

    It does so for batches of the stage's full size, while modes, gradients and memory are as they were when it was
    compared. Everything else runs eagerly: the last batch of an epoch where that is smaller, rows that need a gradient.

    Args:
        eager: what it must agree with.
        choice: what the stage asks for, and what is tried.
        stage: the stage.
        record: gets what became of it, and says what became of it before a run was killed.
        warn: tells the user.
    """

    def __init__(
        self,
        eager: Piece,
        choice: Choice,
        stage: Stage,
        record: AccelerationRecord,
        warn: Callable[[str], None],
    ) -> None:
        self.eager, self.gives, self._choice, self._stage = eager, eager.gives, choice, stage
        self._record, self._warn = record, warn
        self._size, self._shape = 0, torch.Size()
        self._quick: Callable[[Tensor], Tensor] | None = None
        self._given_up = self._left = False
        self._modules: list[nn.Module] = []
        self._tensors: list[Tensor] = []
        self._state: tuple[Any, ...] = ()

    # -- what a step calls -----------------------------------------------------------------------------------------

    def __call__(self, rows: Tensor, size: int) -> Tensor:
        """Maps or pooled features of a batch's rows.

        Args:
            rows: [N, C, H, W].
            size: images of the batch, before methods changed their number.

        Raises:
            RunError: what the recipe asks for by name cannot be had.
        """
        if self._given_up or size != self._size or rows.requires_grad or not torch.is_grad_enabled():
            return self.eager(rows)  # type: ignore[no-any-return]
        if self._quick is None:
            self._prepare(rows)
        if self._quick is None or rows.shape != self._shape or not self._as_compared():
            return self.eager(rows)  # type: ignore[no-any-return]
        return self._quick(rows)

    def epoch_started(self, loop: Loop) -> None:
        """Note how many images a full batch has, and see that no method has exchanged modules."""
        self._size = len(loop.batches[0]) if loop.batches else 0
        if self._quick is not None and self._modules != list(self.eager.modules()):
            self._leave("a method has exchanged modules of the backbone")

    def stage_ended(self, loop: Loop) -> None:
        """Give memory and compiled code back."""
        if self._quick is None and not self._given_up:
            self._record["chosen"], self._record["why"] = "off", "no batch had the full size"
        compiled = self._quick is not None and self._choice.chosen == "compile"
        self._quick, self._given_up = None, True
        if compiled:
            torch.compiler.reset()  # which keeps a bounded number of variants of a function

    # -- before the first use --------------------------------------------------------------------------------------

    def _prepare(self, rows: Tensor) -> None:
        """Make the quicker function, compare it, and use it from here on; or give up."""
        if reason := unwatched(self.eager):
            self._give_up(reason)
            return
        epsilon = rounding(self._stage.precision, self.eager.autocast)
        piece, kept = Piece(self.eager.backbone, self.gives, self.eager.autocast), Kept(self.eager)
        try:
            with waiting_allowed(), one_message(kept.put_back):
                quick = MAKERS[self._choice.chosen](piece, rows)
                found, natural = compared(self.eager, quick, rows, kept, epsilon)
        except Failed as failure:
            self._give_up(str(failure))
            return
        if not found.finite:  # which the run's own guard tells of
            self._given_up = True
            self._record["chosen"], self._record["why"] = "off", "the eager backbone gave values that are not finite"
            return
        self._record["features_difference"], self._record["gradients_difference"] = found.largest
        if reason := found.wrong(natural, epsilon):
            self._give_up(reason)
            return
        self._quick, self._shape = quick, rows.shape
        self._modules = list(self.eager.modules())
        self._tensors = [*self.eager.parameters(), *self.eager.buffers()]
        self._state = self._now()

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        asked, kind = self._choice.asked, self._choice.chosen
        where = f"stage '{self._stage.name}'"
        if asked != "auto":
            raise RunError(f"{where}: accelerate: {asked} cannot be had: {reason}; use accelerate: off")
        self._record["chosen"], self._record["why"] = "off", reason
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # of what was tried
        self._warn(f"{where} trains with the eager backbone, because {kind} cannot be had: {reason}")

    # -- whether it still holds ------------------------------------------------------------------------------------

    def _now(self) -> tuple[Any, ...]:
        """What must not change: modes, which parameters get a gradient, and for graphs where everything lies."""
        modes = tuple([module.training for module in self._modules])
        wanted = tuple([tensor.requires_grad for tensor in self._tensors])
        where = tuple([tensor.data_ptr() for tensor in self._tensors]) if self._choice.chosen == "graphs" else ()
        return modes, wanted, where

    def _as_compared(self) -> bool:
        if self._now() == self._state:
            return True
        self._leave("a method has changed modes, gradients or memory of the backbone's parameters")
        return False

    def _leave(self, reason: str) -> None:
        if not self._left:
            self._left = True
            self._record["why"] = f"left where it was no longer what had been compared: {reason}"
            self._warn(f"stage '{self._stage.name}': {reason}; steps in which it is so run with the eager backbone")
        if self._modules != list(self.eager.modules()):
            self._given_up, self._quick = True, None


def chosen(plan: Plan, index: int, device: torch.device) -> Choice:
    """What a stage's backbone is tried with on this machine.

    Args:
        plan: the plan.
        index: the stage's place in it.
        device: where it trains.

    Raises:
        RecipeError: what the stage asks for by name cannot be had here.
    """
    found = plan.stages[index]
    why = obstacle(found.stage, found.answers, plan.skeleton)
    tried = choice(found.stage.accelerate, device.type, why, ranks.size())
    lacking = without_compiler() if found.stage.accelerate == "compile" else ""
    if wrong := refused(found.stage, device.type, tried.why or lacking):
        raise plan.loaded.fail(("stages", index, "accelerate"), f"stage '{found.stage.name}': {wrong}")
    return tried


class Failed(Exception):
    """What was tried cannot be done; the message says why."""


@contextmanager
def waiting_allowed() -> Iterator[None]:
    """Whoever looks for steps that wait for a GPU does not mean this one."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def one_message(put_back: Callable[[], None]) -> Iterator[None]:
    """Put everything back, and tell whatever PyTorch raises in one line."""
    try:
        yield
    except Failed:
        raise
    except Exception as error:  # a compiler and a driver are behind it: any kind
        text = " ".join(str(error).split())
        raise Failed(f"{type(error).__name__}: {text[:300]}") from error
    finally:
        put_back()


def unwatched(piece: nn.Module) -> str:
    """Hooks of modules are Python, which no graph calls again."""
    for name, module in piece.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return f"a hook of PyTorch's modules looks on at {name.removeprefix('backbone.')}"
    return ""


def without_compiler(environment: Mapping[str, str] = os.environ) -> str:
    """Why PyTorch's compiler cannot work on this machine; empty where it can be tried."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    wanted = environment.get("CXX") or usual
    if shutil.which(wanted):
        return ""
    return (
        f"PyTorch's compiler needs a C++ compiler, and there is no {wanted} here; install one (package g++ on Debian "
        "and Ubuntu), or name yours in the variable CXX"
    )
