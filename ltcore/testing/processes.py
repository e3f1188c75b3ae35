"""The same training in another process, which is started once and serves all checks of this one.

It also forks two more, which train together (`ltcore.testing.together`): they have imported all that they need.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from ltcore.contract.method import Method
    from ltcore.discovery.offer import Offer
    from ltcore.testing.together import Shared
    from ltcore.testing.trial import Trained

_HASH_SEED = "20260713"


@dataclass(frozen=True)
class _Other:
    """The other process, and the one that started it: those that are forked from that one use it, too, in turn."""

    process: subprocess.Popen[bytes]
    started_by: int

    @property
    def ours(self) -> bool:
        """Whether it is this process that started it, and knows whether it has ended."""
        return self.started_by == os.getpid()


_running: list[_Other] = []
#: Held while a task is answered.
_turn = get_context("fork").Lock()


def start() -> subprocess.Popen[bytes]:
    """The other process; it imports what it needs while this one goes on."""
    if not _running or (_running[0].ours and _running[0].process.poll() is not None):
        command = "from ltcore.testing.processes import serve; serve()"
        environment = {
            **os.environ,
            "PYTHONHASHSEED": _HASH_SEED,
            "CUDA_VISIBLE_DEVICES": "",  # it trains on the CPU, and could not fork once it had used a GPU
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        process = subprocess.Popen(
            [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        _running[:] = [_Other(process, os.getpid())]
        atexit.register(_stop, process)
    return _running[0].process


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()


def elsewhere(offer: Offer, kind: type[Method], recipe: Mapping[str, Any]) -> Trained | str:
    """Train a recipe in the other process.

    Args:
        offer: what offers the method.
        kind: its class, which the other process imports.
        recipe: as plain data.

    Returns:
        What came of it; or, as text, why nothing did.
    """
    answer: Trained | str = _asked("alone", offer, kind, recipe)
    return answer


def in_two(offer: Offer, kind: type[Method], recipe: Mapping[str, Any]) -> tuple[Shared, Shared] | str:
    """Train a recipe in two processes together, which the other one forks; arguments as for `elsewhere`.

    Returns:
        What came of it in each of them; or, as text, why nothing did.
    """
    answer: tuple[Shared, Shared] | str = _asked("together", offer, kind, recipe)
    return answer


def _asked(how: str, offer: Offer, kind: type[Method], recipe: Mapping[str, Any]) -> Any:
    module = sys.modules.get(kind.__module__)
    task = (how, offer.name, kind.__module__, kind.__qualname__, getattr(module, "__file__", None), dict(recipe))
    process = start()
    assert process.stdin is not None and process.stdout is not None
    try:
        with _turn:
            pickle.dump(task, process.stdin)
            process.stdin.flush()
            return pickle.load(process.stdout)
    except (OSError, EOFError) as error:
        if _running[0].ours:
            return f"the other process ended ({type(error).__name__}, exit code {process.poll()})"
        _running.clear()  # it may have ended over another one's task
        return _asked(how, offer, kind, recipe)


def serve() -> None:
    """Answer tasks on standard input until it is closed; what a plugin prints goes to standard error."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        # Imported while the first task is not there yet; the compiler, since the first optimiser imports it.
        import torch

        import_module("torch._dynamo")
        from ltcore.testing.together import two as _  # noqa: F401

        torch.set_num_threads(1)
        source: BinaryIO = sys.stdin.buffer
        while True:
            try:
                task = pickle.load(source)
            except EOFError:
                return
            pickle.dump(_answer(*task), out)
            out.flush()


def _answer(
    how: str, name: str, module: str, qualname: str, file: str | None, recipe: Mapping[str, Any]
) -> Trained | tuple[Shared, Shared] | str:
    from ltcore.discovery import catalogue
    from ltcore.testing.parts import PARTS
    from ltcore.testing.together import two
    from ltcore.testing.trial import train
    from ltcore.testing.watch import Watch

    try:
        kind: Any = _imported(module, file)
        for part in qualname.split("."):
            kind = getattr(kind, part)
    except (Exception, SystemExit) as error:
        return f"another process cannot import {module}:{qualname}: {type(error).__name__}: {error}"
    installed = any(offer.name == name for offer in catalogue.offers())
    try:
        with catalogue.lent(PARTS if installed else {**PARTS, name: kind}):
            if how == "together":
                return two(recipe, name)
            trained = train(recipe, Watch(frozenset({name})))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    trained.saved.clear()
    return trained


def _imported(name: str, file: str | None) -> Any:
    try:
        return import_module(name)
    except ImportError:
        spec = importlib.util.spec_from_file_location(name, file) if file else None
        if spec is None or spec.loader is None:
            raise
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
