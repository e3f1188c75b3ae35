"""A training in two processes together, as under torchrun, and how it differs from that in one."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ltcore import ranks
from ltcore.errors import LtcoreError, RecipeError
from ltcore.testing.recipes import plainly
from ltcore.testing.trial import Step, train
from ltcore.testing.watch import Watch
from ltcore.training.loop import Loop, Observer

if TYPE_CHECKING:
    from ltcore.testing.trial import Trained

SIZE = 2
#: Seconds without a sign of life, after which a process waits for another one that will not come.
PATIENCE = 60.0
#: How far a term of a step's loss may be off, relative to the larger of it and 1: sums are made in another order.
NEAR = 1e-5
#: Steps of each stage in which it must not be more; behind them what was rounded otherwise may have grown.
FIRST = 4
#: How far it may be off in the steps behind those.
LATER = 1e-3

#: Words of `requires` with which a method says that a batch of its must not be taken apart.
SAYING = frozenset({"one_process", "second_order"})
CHANGE = (
    "leave the processes alone: every hook sees the whole batch in each of them, so nothing is to be gathered, summed, "
    "or drawn by rank; what cannot be so says requires = frozenset({'one_process'})"
)


@dataclass
class Shared:
    """What one of the processes has trained.

    Attributes:
        steps: its steps.
        states: behind each step, a digest of each tensor of the methods and the classifier.
        tested: see `ltcore.testing.trial.Trained`.
        error: why it ended before its end; empty where it did not.
        refused: whether that was a recipe that must not be trained so.
        lost: whether it ended because another one did.
    """

    steps: list[Step] = field(default_factory=list)
    states: list[dict[str, str]] = field(default_factory=list)
    tested: tuple[int, float] | None = None
    error: str = ""
    refused: bool = False
    lost: bool = False


class _Tell(Observer):
    """Sends what each step was to the process that waits for it."""

    def __init__(self, there: Connection) -> None:
        self._there = there
        self._losses: dict[str, float] = {}

    def losses_computed(self, loop: Loop, losses: dict[str, torch.Tensor]) -> None:
        self._losses = {name: value.item() for name, value in losses.items()}

    def step_ended(self, loop: Loop) -> None:
        position = loop.position
        step = Step((loop.stage.name, position.epoch, position.step - 1), self._losses, position.images)
        tensors = {name: tensor for name, tensor in loop.model.state_dict().items() if not name.startswith("backbone.")}
        self._there.send((step, {name: _digest(tensor) for name, tensor in tensors.items()}))


def _digest(tensor: torch.Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(content.numpy().tobytes(), digest_size=8).hexdigest()


def two(recipe: Mapping[str, Any], name: str) -> tuple[Shared, Shared]:
    """Train a recipe in two processes that are forked from this one.

    Args:
        recipe: as plain data.
        name: the method's name in it.
    """
    folder = Path(tempfile.mkdtemp(prefix="ltcore-check-"))
    context, found = get_context("fork"), [Shared() for _ in range(SIZE)]
    pipes = [context.Pipe(duplex=False) for _ in found]
    started = [
        context.Process(target=_train, args=(rank, theirs, folder, dict(recipe), name))
        for rank, (_, theirs) in enumerate(pipes)
    ]
    try:
        for process, (_, theirs) in zip(started, pipes, strict=True):
            process.start()
            theirs.close()
        _listen([mine for mine, _ in pipes], found)
    finally:
        for process, (mine, _) in zip(started, pipes, strict=True):
            if process.is_alive():
                process.join(1.0)
            if process.is_alive():
                process.kill()
            process.join()
            mine.close()
        shutil.rmtree(folder, ignore_errors=True)
    for process, shared in zip(started, found, strict=True):
        if not shared.error and process.exitcode:
            shared.error = _ended(process.exitcode)
    return found[0], found[1]


def _ended(code: int) -> str:
    how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"it ended {how}"


def _listen(pipes: Sequence[Connection], found: Sequence[Shared]) -> None:
    """Take what the processes send, until all have ended or none says anything any more."""
    open_pipes = dict(zip(pipes, found, strict=True))
    heard = time.monotonic()
    while open_pipes:
        ready: Iterable[Any] = wait(list(open_pipes), timeout=max(0.0, heard + PATIENCE - time.monotonic()))
        if not ready:
            for shared in open_pipes.values():
                shared.error = f"it has done nothing for {PATIENCE:.0f} s: it waits for what the other does not do"
            return
        heard = time.monotonic()
        for pipe in ready:
            shared = open_pipes[pipe]
            try:
                step, states = pipe.recv()
            except (EOFError, OSError):
                del open_pipes[pipe]
                continue
            if isinstance(step, Step):
                shared.steps.append(step)
                shared.states.append(states)
            else:
                for attribute, value in states.items():
                    setattr(shared, attribute, value)


def _train(rank: int, there: Connection, folder: Path, recipe: dict[str, Any], name: str) -> None:
    """What each of the processes does."""
    torch.set_num_threads(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)  # what a plugin prints it has printed in one process already
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": SIZE, "LOCAL_WORLD_SIZE": SIZE}
    os.environ.update({name: str(value) for name, value in here.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"})  # where torchrun would have them meet
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback
    end: dict[str, Any]
    try:
        with ranks.together("cpu", _store(folder / "met")):
            trained = train(recipe, Watch(frozenset({name})), folder=folder, observers=[_Tell(there)])
        end = {"tested": trained.tested}
    except Exception as error:
        text = plainly(error) if isinstance(error, LtcoreError) else f"{type(error).__name__}: {error}"
        if any(word in text for word in ("lost the others", "gloo", "Connection closed")):
            end = {"error": "it has lost the other one", "lost": True}
        else:
            end = {"error": text, "refused": isinstance(error, RecipeError)}
    with suppress(OSError):  # nobody waits any more
        there.send((None, end))
        there.close()


def _store(path: Path) -> Any:
    return dist.FileStore(str(path), SIZE)  # type: ignore[attr-defined]


def difference(one: Trained, shared: Sequence[Shared]) -> str | None:
    """How two processes together have trained otherwise than one, at the first step where they have; None if nowhere.

    Args:
        one: what one process has trained.
        shared: what each of the two has.
    """
    for number, reference in enumerate(one.steps):
        if any(number >= len(each.steps) for each in shared):
            break
        wrong = _step_difference(reference, number, shared)
        if wrong:
            return f"{_place(reference)}: {wrong}"
    ended = [(rank, each) for rank, each in enumerate(shared, 1) if each.error]
    for rank, each in sorted(ended, key=lambda pair: pair[1].lost):  # who has lost the other one says nothing of why
        behind = f"behind {_place(each.steps[-1])}" if each.steps else "before its first step"
        return f"process {rank} of {SIZE} has not come to its end ({behind}): {each.error}"
    for each in shared:
        if len(each.steps) != len(one.steps):
            return f"two processes train {len(each.steps)} steps, and one trains {len(one.steps)}"
    return _test_difference(one, shared)


def _place(step: Step) -> str:
    stage, epoch, number = step.at
    return f"stage '{stage}', epoch {epoch + 1}, step {number + 1}"


def _step_difference(reference: Step, number: int, shared: Sequence[Shared]) -> str | None:
    steps = [each.steps[number] for each in shared]
    for step in steps:
        if step.at != reference.at:
            return f"two processes are at {_place(step)}"
        if step.images != reference.images:
            return f"two processes have seen {step.images} images of the stage, and one has seen {reference.images}"
        if step.losses.keys() != reference.losses.keys():
            return f"the terms of the loss are {sorted(step.losses)} in two, and {sorted(reference.losses)} in one"
    first, second = (step.losses for step in steps)
    for name in first:
        if repr(first[name]) != repr(second[name]):
            return f"the loss '{name}' is {first[name]!r} in the first process and {second[name]!r} in the second"
    allowed = NEAR if sum(reference.at[1:]) < FIRST and reference.at[1] == 0 else LATER
    for name, value in reference.losses.items():
        if not abs(first[name] - value) <= allowed * max(abs(value), 1.0):
            return f"the loss '{name}' is {value!r} in one process, and {first[name]!r} in two together"
    mine, other = (each.states[number] for each in shared)
    for name in sorted(mine.keys() | other.keys()):
        if mine.get(name) != other.get(name):
            return f"'{name.removeprefix('methods.')}' is another one in the second process than in the first"
    return None


def _test_difference(one: Trained, shared: Sequence[Shared]) -> str | None:
    if one.tested is None:
        return None
    images, accuracy = one.tested
    for rank, each in enumerate(shared, 1):
        count, found = each.tested or (0, 0.0)
        if count != images:
            return f"process {rank} of {SIZE} has outputs of {count} test images, of {images}"
        if abs(found - accuracy) > 1.5 / images:
            return f"the accuracy on {images} test images is {accuracy:.3f} in one process and {found:.3f} in two"
    return None
