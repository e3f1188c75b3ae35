"""Which hooks were called in the first steps of a stage: which were not, and with tracing, when and for how long.

Tracing is asked for by ``ltcore trace`` or by ``LTCORE_TRACE=1`` in the environment of ``ltcore run``. A
`HookTrace` stands around the bound calls of a stage (`Hooks.observe`) and leaves after those steps, so that the steps
that follow pay nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.contract.hookspecs import HOOKS
from ltcore.files.writing import append
from ltcore.training.loop import Loop, Observer

if TYPE_CHECKING:
    from ltcore.contract.context import RunState
    from ltcore.contract.recipe import Stage
    from ltcore.discovery.binding import Hooks, Implementation

#: How many steps of a stage are traced.
STEPS = 5


def asked() -> bool:
    """Whether the environment asks for a trace: ``LTCORE_TRACE`` is set, and not to 0."""
    return os.environ.get("LTCORE_TRACE", "0") not in ("", "0")


@dataclass(frozen=True)
class Call:
    """One call of a method's hook.

    Attributes:
        answer: which method's, and which hook.
        epoch: epoch of the stage, -1 before the first.
        step: step of the epoch; None for a hook that is called outside of steps.
        start: seconds since the stage began.
        seconds: how long it took.
        own: the same without calls of other hooks within it.
    """

    answer: Implementation
    epoch: int
    step: int | None
    start: float
    seconds: float
    own: float


class HookTrace(Observer):
    """Sees a stage's hooks being called, until its first step is done, or its first `steps`.

    Args:
        stage: the stage.
        hooks: its methods, bound; their calls go through this object until it is done.
        state: where the run stands.
        warn: takes a sentence for each hook that the first step should have called and has not.
        finished: is called with this object when there is no more to see.
        steps: how many steps are traced; 0 to see in the first one only what is called.
        clock: seconds. On an accelerator they are the host's: kernels that a call has launched may still be running.
    """

    def __init__(
        self,
        stage: Stage,
        hooks: Hooks,
        state: RunState,
        warn: Callable[[str], None],
        finished: Callable[[HookTrace], None],
        steps: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._stage, self._hooks, self._state, self._steps, self._clock = stage, hooks, state, steps, clock
        self._warn, self._finished, self._done = warn, finished, False
        self._fired: set[Implementation] = set()
        #: Every call, in the order in which they ended.
        self.calls: list[Call] = []
        #: Seconds of each step that has ended.
        self.steps: list[float] = []
        #: For each call that has not returned, the seconds of other calls within it.
        self._within: list[float] = []
        self._ended = 0
        self._began = self._mark = clock()
        hooks.observe(self._timed if steps else self._noted)

    def _noted(self, answer: Implementation, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*values: Any) -> Any:
            self._fired.add(answer)
            return call(*values)

        return noted

    def _timed(self, answer: Implementation, call: Callable[..., Any]) -> Callable[..., Any]:
        clock, state, in_step = self._clock, self._state, HOOKS[answer.hook].called == "step"

        def timed(*values: Any) -> Any:
            self._fired.add(answer)
            self._within.append(0.0)
            began = clock()
            try:
                return call(*values)
            finally:
                seconds = clock() - began
                own = seconds - self._within.pop()
                if self._within:
                    self._within[-1] += seconds
                step = state.step if in_step else None
                self.calls.append(Call(answer, state.epoch, step, began - self._began, seconds, own))

        return timed

    def epoch_started(self, loop: Loop) -> None:
        """The steps of an epoch begin now; what was before is part of none."""
        self._mark = self._clock()

    def step_ended(self, loop: Loop) -> None:
        """A step has ended; after the first one, warn of what it has not called."""
        if self._done:
            return
        now = self._clock()
        self.steps.append(now - self._mark)
        self._mark = now
        if len(self.steps) == 1:
            for text in self._silent():
                self._warn(text)
        if len(self.steps) >= max(self._steps, 1):
            self._leave()

    def stage_ended(self, loop: Loop) -> None:
        """A stage of few steps has ended."""
        if not self._done:
            self._leave()

    def _leave(self) -> None:
        """Bind the hooks without this object between."""
        self._done = True
        self._hooks.observe(None)
        self._finished(self)

    def _silent(self) -> list[str]:
        """A sentence for each hook that the step should have called and has not."""
        texts = []
        called = [hook for hook in HOOKS.values() if hook.is_called_in(self._stage.classification)]
        wanted = sorted(hook.name for hook in called if hook.called == "step")
        for answer in (answer for name in wanted for answer in self._hooks.answers[name]):
            if answer not in self._fired:
                at, why = "", "tell its author"
                if answer.hook == "augment_features":
                    at = f" at tap '{answer.entry.method.tap}'"
                    why = "the backbone never came by that tap; choose another ('ltcore plan --taps' lists them)"
                texts.append(
                    f"stage '{self._stage.name}': the first step did not call {answer.hook} of {answer.entry.whose}"
                    f"{at}: {why}"
                )
        return texts

    def write(self, path: Path) -> None:
        """Add a line of JSON for each call to a file, in the order in which they began."""
        lines = (
            {
                "stage": self._stage.name,
                "epoch": call.epoch,
                "step": call.step,
                "hook": call.answer.hook,
                "method": call.answer.entry.key,
                "start_ms": _milliseconds(call.start),
                "duration_ms": _milliseconds(call.seconds),
            }
            for call in sorted(self.calls, key=lambda call: call.start)
        )
        append(path, "".join(json.dumps(line) + "\n" for line in lines))

    def describe(self) -> dict[str, Any]:
        """A row for each method's hook, in the order in which they were first called, as JSON-able data.

        ``share`` is the part of the steps' time that was spent in the hook and in no other within it. None for a hook
        that is called outside of steps.
        """
        found: dict[Implementation, list[Call]] = {}
        for call in sorted(self.calls, key=lambda call: call.start):
            found.setdefault(call.answer, []).append(call)
        whole = sum(self.steps)
        return {
            "name": self._stage.name,
            "steps": len(self.steps),
            "step_ms": _milliseconds(whole / max(len(self.steps), 1)),
            "hooks": [
                {
                    "order": number,
                    "hook": answer.hook,
                    "method": answer.entry.key,
                    "distribution": answer.entry.offer.distribution,
                    "version": answer.entry.offer.version,
                    "calls": len(calls),
                    "total_ms": _milliseconds(total := sum(call.own for call in calls)),
                    "call_ms": _milliseconds(total / len(calls)),
                    "first_ms": _milliseconds(calls[0].own),
                    "share": round(total / whole, 4) if HOOKS[answer.hook].called == "step" and whole else None,
                }
                for number, (answer, calls) in enumerate(found.items(), 1)
            ],
        }


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 4)


def render_all(found: dict[str, Any]) -> str:
    """The text of ``ltcore trace`` from what `ltcore.rehearsal.rehearsal.trace_hooks` returns."""
    lines = [f"{found['recipe']}: the first steps of each stage, on {found['device']}; nothing is kept"]
    lines += [f"  note      {note}" for note in found["notes"]]
    for stage in found["stages"]:
        lines += ["", *render(stage, found["device"])]
    return "\n".join(lines)


_TITLES = (("hook", 19), ("calls", 5), ("total ms", 10), ("a call", 10), ("the first", 10), ("of step", 8))


def render(described: dict[str, Any], device: str) -> list[str]:
    """A stage's rows, as lines of text.

    Args:
        described: what `HookTrace.describe` returns.
        device: where it was trained, such as ``cuda``.
    """
    steps, rows = described["steps"], described["hooks"]
    lines = [
        f"stage {described['name']}: hooks in the first {steps} step{'' if steps == 1 else 's'}, "
        f"{described['step_ms']:.2f} ms each"
    ]
    table: list[Sequence[str]] = [[title for title, _ in _TITLES]]
    for row in rows:
        times = [f"{row[key]:.3f}" for key in ("total_ms", "call_ms", "first_ms")]
        table.append([row["hook"], str(row["calls"]), *times, _percent(row["share"])])
    whose = ["method", *(f"{row['method']} ({row['distribution']} {row['version']})" for row in rows)]
    for number, (cells, last) in enumerate(zip(table, whose, strict=True)):
        first, *others = (f"{cell:>{width}}" for cell, (_, width) in zip(cells, _TITLES, strict=True))
        lines.append(f"  {number or '':>2}  {first.strip():{_TITLES[0][1]}} {' '.join(others)}  {last}")
    rest = 1 - sum(row["share"] or 0.0 for row in rows)
    lines.append(f"      the rest of a step: data, network, backward pass, optimiser: {_percent(rest)}")
    if device.startswith("cuda"):
        lines.append("      Times are the host's: the GPU may still be computing when a call returns.")
    return lines


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
