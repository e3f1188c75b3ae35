"""How many threads PyTorch computes with on the CPU, and how they wait for one another.

Sums are made in another order with another number of threads, so figures depend on it. By OpenMP's default a thread
waits for the others by spinning. Beside other programs, it then takes the core from the thread that it waits for.
``benchmarks/threads.py`` measures both.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec, TypeVar

if TYPE_CHECKING:
    from ltcore.recipe.loading import LoadedRecipe

Threads = Literal["auto"] | int
P = ParamSpec("P")
R = TypeVar("R")

#: Where Linux says how much of the cores a container may use: microseconds in each period, or ``max``.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def prepare_openmp() -> None:
    """Tell OpenMP, which reads it once, when PyTorch is imported; what the user has set stays.

    Waiting threads sleep, and there are as many as `automatic` says. Everything that the process starts is told, too.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(automatic()))


def automatic() -> int:
    """What ``threads: auto`` stands for: OMP_NUM_THREADS, or else half of the cores, rounded up.

    With half of the cores no step takes more than twice the time that all of them would need. (This assumes that one
    more core is never worth more than the ones before it.) The other half is left to other programs: threads wait for
    the slowest one, so a single busy core would slow all of them down. What a system counts as cores are often two
    threads of one.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isdecimal() and int(first):
        return int(first)
    return -(-usable_cores() // 2)


def usable_cores() -> int:
    """Cores that this process may use, at least 1: of its affinity, and of its container's quota on Linux."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text(encoding="utf-8").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # there is none
        return cores


@contextmanager
def computing_with(threads: Threads) -> Iterator[None]:
    """Let PyTorch compute with so many threads inside the block.

    Args:
        threads: a recipe's ``threads``.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(automatic() if threads == "auto" else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_the_recipe_says(
    function: Callable[Concatenate[LoadedRecipe, P], R],
) -> Callable[Concatenate[LoadedRecipe, P], R]:
    """A function of a recipe, computing with the recipe's number of threads."""

    @functools.wraps(function)
    def computing(loaded: LoadedRecipe, /, *arguments: P.args, **named: P.kwargs) -> R:
        with computing_with(loaded.recipe.threads):
            return function(loaded, *arguments, **named)

    return computing
