"""Ways that take turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

#: Rounds that are gone through whatever they take.
LEAST = 3


def in_turns(
    ways: Mapping[str, Callable[[], float]],
    seconds: float,
    least: int = LEAST,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Go through all ways again and again.

    Args:
        ways: each measures once and returns its figure.
        seconds: no round begins after these.
        least: rounds at the least.
        clock: seconds.

    Returns:
        By way, a figure a round.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    began, rounds = clock(), 0
    while rounds < least or clock() - began < seconds:
        for name, way in ways.items():
            found[name].append(way())
        rounds += 1
    return found


def middle(figures: Sequence[float]) -> float:
    """The median."""
    return statistics.median(figures)


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def wait_for(device: torch.device) -> None:
    """Let the device finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
