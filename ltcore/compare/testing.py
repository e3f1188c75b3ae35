"""Mean, spread, and whether a difference is more than the seeds' spread explains."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (over n - 1) of `n` values; None for no value, and for the spread of one."""

    mean: float | None
    sd: float | None
    n: int


@dataclass(frozen=True)
class PairedTest:
    """A two-sided paired t-test over the seeds that two groups have in common.

    Attributes:
        seeds: the common seeds.
        difference: mean of the differences from the baseline over them; None without a common seed.
        p: the test's p-value; None where there is none.
        why: in place of a p-value, why there is none; otherwise empty.
    """

    seeds: list[int]
    difference: float | None
    p: float | None
    why: str


def spread(values: Sequence[float | None]) -> Spread:
    """The spread of values; a missing one counts for nothing, and `n` says how many there are."""
    known = [value for value in values if value is not None]
    return Spread(
        statistics.fmean(known) if known else None, statistics.stdev(known) if len(known) > 1 else None, len(known)
    )


def paired_test(ours: Mapping[int, float], baseline: Mapping[int, float]) -> PairedTest:
    """Test the difference of two groups' figures.

    Args:
        ours: the figure by seed.
        baseline: the same of the baseline.
    """
    seeds = sorted(set(ours) & set(baseline))
    mine, theirs = [ours[seed] for seed in seeds], [baseline[seed] for seed in seeds]
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    difference = statistics.fmean(differences) if seeds else None
    if len(seeds) < 2:
        common = "1 seed" if seeds else "no seed"
        return PairedTest(seeds, difference, None, f"{common} in common with the baseline; a test needs 2")
    # Not exactly 0 where equal differences were computed from unequal figures.
    if max(differences) - min(differences) < 1e-12:
        return PairedTest(seeds, difference, None, "the difference is the same for every seed, so there is no spread")
    from scipy.stats import ttest_rel

    return PairedTest(seeds, difference, float(ttest_rel(mine, theirs).pvalue), "")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values that hold the chance of any false finding, in the given order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
