"""A sweep's figures as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from ltcore.compare.testing import spread
from ltcore.contract.figures import COMPARED, FIGURES
from ltcore.errors import LtcoreError
from ltcore.files.reading import read_result
from ltcore.sweeps.folder import JobFolder


def figures_of(jobs: Mapping[str, Sequence[JobFolder]]) -> str:
    """Mean and standard deviation over the seeds, in percent, a line a combination.

    Args:
        jobs: those of each combination, by its name.
    """
    width = max(map(len, jobs), default=0)
    lines = [f"{'':{width}}  seeds  " + "  ".join(f"{FIGURES[name].short:>12}" for name in COMPARED)]
    for name, members in jobs.items():
        results = []
        for job in members:
            with suppress(LtcoreError):
                if run := job.finished:
                    results.append(read_result(run / "result.json")["after_calibration"])
        cells = []
        for metric in COMPARED:
            found = spread([result.get(metric) for result in results])
            sd = "" if found.sd is None else f" ± {100 * found.sd:.1f}"
            cells.append(f"{'-' if found.mean is None else f'{100 * found.mean:.1f}{sd}':>12}")
        lines.append(f"{name:{width}}  {len(results):>2}/{len(members):<2}  " + "  ".join(cells))
    return "\n".join(lines) + "\n"
