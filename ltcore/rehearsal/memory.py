"""How much memory a process, its workers and its device have used."""

from __future__ import annotations

import resource
import sys
from multiprocessing import active_children
from pathlib import Path

import torch


def memory_used(device: torch.device) -> dict[str, int]:
    """Bytes: the peak of this process, what its workers hold for themselves now, and the peaks on a CUDA device."""
    used = {"process": _peak(), "workers": sum(_private(child.pid) for child in active_children())}
    if device.type == "cuda":
        used["device_allocated"] = torch.cuda.max_memory_allocated(device)
        used["device_reserved"] = torch.cuda.max_memory_reserved(device)
    return used


def is_lack_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory has run out, on the CPU or on a device."""
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text


def _peak() -> int:
    # ru_maxrss of a process begins at that of the one that started it, where the system says more.
    found = _status(Path("/proc/self/status"), "VmHWM:")
    return found or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _private(process: int | None) -> int:
    path = Path(f"/proc/{process}/smaps_rollup")
    return _status(path, "Private_Clean:") + _status(path, "Private_Dirty:")


def _status(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)
