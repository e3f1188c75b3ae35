"""Runs that have not ended: whether a process works on one, and the command that goes on with it. Without torch."""

from __future__ import annotations

import fcntl
import shlex
from pathlib import Path


def in_use(run: Path) -> bool:
    """Whether a process is working in a run's directory."""
    try:
        with open(run / "lock", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def command(run: Path) -> str:
    """What to type to go on with the run in a directory ``OUT/NAME/RUN``."""
    return shlex.join(["ltcore", "run", str(run / "recipe.yaml"), "--out", str(run.parent.parent), "--resume"])
