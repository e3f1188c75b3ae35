"""Checks of many methods in several processes, forked once what all of them need has been imported."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from ltcore.discovery import catalogue
from ltcore.discovery.offer import Offer
from ltcore.errors import LtcoreError, RecipeError, RunError
from ltcore.testing import pairs, processes
from ltcore.testing.checking import WITHOUT_TRAINING, one_thread
from ltcore.testing.parts import PARTS
from ltcore.testing.recipes import Part
from ltcore.testing.report import CHECKS
from ltcore.training.threads import usable_cores

Task = TypeVar("Task")
Answer = TypeVar("Answer")


def possible(jobs: int | None) -> int:
    """How many processes: as many as asked for, or one per core that this process may use.

    One where CUDA is there, which a forked process cannot use, and by default on macOS, where libraries break in it.

    Raises:
        RecipeError: more than one is asked for where CUDA is there.
    """
    if torch.cuda.is_available():
        if jobs is not None and jobs > 1:
            raise RecipeError(
                f"--jobs {jobs}: the checks use the GPU, which several processes of theirs cannot share; leave --jobs "
                "out, or hide the GPU with CUDA_VISIBLE_DEVICES= in front of the command"
            )
        return 1
    return jobs or (usable_cores() if sys.platform == "linux" else 1)


def prepare(offers: Sequence[Offer], without: Collection[str], jobs: int) -> None:
    """Import what the checks of some methods need, and try each two of them that have to be tried, in `jobs` processes.

    What is wrong with a method is left for its checks to say.
    """
    if jobs == 1:
        return
    if set(CHECKS) - WITHOUT_TRAINING - set(without):
        processes.start()  # it imports what it needs meanwhile, too
        import_module("torch._dynamo")  # as the first optimiser does
    for offer in offers:
        try:
            catalogue.load(offer)
        except LtcoreError:
            continue
    if "pairs" in without:
        return
    with catalogue.lent(PARTS), one_thread():
        waiting = pairs.untried(offers)
        answers = spread(waiting, _tried, jobs, lambda pair: f"{pair[0].name} with {pair[1].name}")
        for pair, outcome in zip(waiting, answers, strict=True):
            pairs.note(*pair, outcome)


def _tried(pair: tuple[Part, Part]) -> tuple[str, str | None]:
    return pairs.together(*pair)


def spread(
    tasks: Sequence[Task], work: Callable[[Task], Answer], jobs: int, name: Callable[[Task], str]
) -> Iterator[Answer]:
    """What `work` answers to each task, in their order; each process takes the next task once it has done one.

    Args:
        tasks: the tasks; the processes inherit them.
        work: does one.
        jobs: how many processes.
        name: how messages name a task.

    Raises:
        RunError: a process ended, or `work` raised an error.
    """
    if jobs == 1:
        yield from map(work, tasks)
        return
    context = get_context("fork")
    waiting, answers, given = iter(range(len(tasks))), dict[int, Answer](), 0
    busy: dict[Connection, tuple[BaseProcess, int]] = {}
    ours: list[Connection] = []
    started: list[BaseProcess] = []
    try:
        for index in range(min(jobs, len(tasks))):
            mine, theirs = context.Pipe()
            ours.append(mine)
            process = context.Process(target=_serve, args=(theirs, list(ours), tasks, work))
            process.start()
            started.append(process)
            theirs.close()
            mine.send(next(waiting))
            busy[mine] = (process, index)
        while given < len(tasks):
            ready = wait(list(busy))
            for mine in [each for each in busy if each in ready]:
                who, index = busy.pop(mine)
                answers[index] = _received(mine, who, name(tasks[index]))
                if (task := next(waiting, None)) is not None:
                    mine.send(task)
                    busy[mine] = (who, task)
            while given in answers:
                yield answers.pop(given)
                given += 1
    finally:
        for each in started:
            each.terminate()
            each.join()
        for mine in ours:
            mine.close()


def _received(mine: Connection, process: BaseProcess, task: str) -> Any:
    try:
        answer, error = mine.recv()
    except (EOFError, OSError):
        process.join()
        raise RunError(
            f"the process that checked {task} ended{_how(process.exitcode)}; --jobs 1 checks one method after the "
            "other in one process, which takes less memory"
        ) from None
    if error is not None:
        raise RunError(f"the check of {task} could not go on: {error}")
    return answer


def _how(code: int | None) -> str:
    if code is None:
        return ""
    return f" by signal {signal.Signals(-code).name}" if code < 0 else f" with exit code {code}"


def _serve(
    theirs: Connection, ours: Sequence[Connection], tasks: Sequence[Task], work: Callable[[Task], Answer]
) -> None:
    """Do tasks by their numbers until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    for connection in ours:
        connection.close()  # else this process would not see the first one's end
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # the first process has ended
        while True:
            task = tasks[theirs.recv()]
            try:
                found: tuple[Answer | None, str | None] = work(task), None
            except Exception as error:
                found = None, str(error) if isinstance(error, LtcoreError) else f"{type(error).__name__}: {error}"
            theirs.send(found)
