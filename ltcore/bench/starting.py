"""How long commands take to start: processes of their own, in turns."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import Any

from ltcore.bench.subject import Subject
from ltcore.bench.turns import LEAST, in_turns, middle


def measure(subject: Subject, seconds: float) -> dict[str, Any]:
    """Seconds of wall time and of CPU time (the process and its children), medians of the turns.

    CPU time grows less where other programs have the cores.

    Args:
        subject: what is measured.
        seconds: for all turns.
    """
    sets = [f"--set={text}" for text in subject.sets]
    programs = {
        "python": ["-c", ""],
        "help": ["-m", "ltcore", "--help"],
        "import_torch": ["-c", "import torch"],
        "plan": ["-m", "ltcore", "plan", str(subject.path), *sets],
    }
    cpu: dict[str, list[float]] = {name: [] for name in programs}

    def timed(name: str) -> float:
        before, began = _cpu_seconds(), time.perf_counter()
        subprocess.run([sys.executable, *programs[name]], check=True, stdout=subprocess.DEVNULL)
        passed = time.perf_counter() - began
        cpu[name].append(_cpu_seconds() - before)
        return passed

    found = in_turns({name: lambda name=name: timed(name) for name in programs}, seconds, LEAST)  # type: ignore[misc]
    return {name: {"seconds": middle(found[name]), "cpu_seconds": middle(cpu[name])} for name in programs}


def _cpu_seconds() -> float:
    """Of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
