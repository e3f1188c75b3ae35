"""What a figure depends on beside the recipe and the data: versions, device, threads, and the code itself."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import socket
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ltcore import ranks
from ltcore.contract.result import EnvironmentRecord
from ltcore.discovery import unpackaged
from ltcore.discovery.offer import UNPACKAGED, Offer

_PACKAGES = (
    *("ltcore", "torch", "torchvision", "timm", "numpy", "pillow", "pluggy", "pydantic", "safetensors"),
    "scikit-learn",
)
SUITED = "suited.py"
#: Packages that compute what a figure is made of; of our own, the code itself is compared.
_COMPUTING = ("torch", "torchvision", "timm", "pillow")
#: The parts of core that do.
_WINGS = ("contract", "data", "discovery", "evaluation", "networks", "training", "ranks.py", "seeding.py")


def environment(device: str, methods: Iterable[tuple[str, str]]) -> EnvironmentRecord:
    """What this process trains with.

    Args:
        device: where to.
        methods: distribution and module of each method; of one in a file, the file's name.

    Returns:
        The record, of whose ``code`` each digest has 16 hexadecimal digits.
    """
    import torch

    methods = set(methods)
    versions = {}
    for name in sorted({*_PACKAGES, *(distribution for distribution, _ in methods)}):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed as a distribution"
    versions |= {name: UNPACKAGED for name, module in methods if unpackaged.ran(module)}
    versions["torch"] = str(torch.__version__)  # with the build, which the distribution's version leaves out
    named = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"
    found: EnvironmentRecord = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": device,
        "device_name": named,
        "threads": torch.get_num_threads(),
        "versions": versions,
        "code": _code(methods),
    }
    if ranks.size() > 1:
        found["processes"] = ranks.size()
    if device.startswith("cuda"):
        found["mps"] = mps()
    return found


def mps() -> bool:
    """Whether NVIDIA's MPS is at work, through which processes on one GPU compute at the same time.

    CUDA looks for the socket of its daemon in the same place. A socket of another type is refused in two ways, which
    tell whether anybody listens, and the daemon hears nothing of it.
    """
    path = os.path.join(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno == errno.EPROTOTYPE
    return True


def compared(found: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """What of an environment changes figures, and what does not, both by a name for messages.

    Args:
        found: as `environment` gives it.
    """
    device = str(found["device"]).partition(":")[0]
    on_cpu = device == "cpu"
    versions = found["versions"]
    matters = {"device": device} | ({} if on_cpu else {"GPU": found["device_name"]})
    matters |= {"number of threads": str(found["threads"])} if on_cpu else {}
    matters |= {"number of processes": str(found.get("processes", 1))}
    matters |= {name: versions[name] for name in _COMPUTING if name in versions}
    matters |= {f"code of {name}": digest for name, digest in found["code"].items()}
    others = {"Python": found["python"], "platform": found["platform"]}
    others |= {name: told for name, told in versions.items() if name not in _COMPUTING}
    others |= {} if on_cpu else {"number of threads": str(found["threads"])}
    return matters, others


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What of an environment has changed and changes figures, and what has changed and does not, in words."""
    old, new = compared(before), compared(now)
    return _changed(old[0], new[0]), _changed(old[1], new[1])


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    said = []
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name):
            how = " (OMP_NUM_THREADS sets it)" if name == "number of threads" else ""
            text = f"{name} was {before.get(name, 'not known')} and is {now.get(name, 'not known')}{how}"
            said.append(f"the {name} has changed" if name.startswith("code of ") else text)
    return said


def _code(methods: set[tuple[str, str]]) -> dict[str, str]:
    """A digest of core's source files and of those of each distribution's methods."""
    core = Path(__file__).parents[1]
    files = {"ltcore": {path for wing in _WINGS for path in _sources(core / wing)}}
    for distribution, module in methods:
        if module.partition(".")[0] != "ltcore" and not unpackaged.ran(module):
            files.setdefault(distribution, set()).update(_sources(_place(module)))
    digests = {name: _digest(found) for name, found in files.items()}
    # Of a file that its author edits meanwhile, what was read counts, and not what stands there now.
    digests |= {name: file.digest for name, module in methods if (file := unpackaged.ran(module))}
    return dict(sorted(digests.items()))


def installed_code(offers: Iterable[Offer]) -> dict[str, str]:
    """The digests of `environment` for what distributions other than core offer, without importing any of it."""
    files: dict[str, set[Path]] = {}
    digests: dict[str, str] = {}
    for offer in offers:
        if file := unpackaged.ran(offer.module):
            digests[offer.distribution] = file.digest
        elif offer.distribution != "ltcore":
            files.setdefault(offer.distribution, set()).update(_sources(_found(offer.module)))
    digests |= {name: _digest(found) for name, found in files.items()}
    return dict(sorted(digests.items()))


def _found(module: str) -> Path | None:
    """What `_place` gives once a module is imported; only the packages of a namespace are."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        spec = find_spec(".".join(parts[:depth]))
        if spec is None:
            return None
        if spec.origin is not None:
            return Path(spec.origin).parent if spec.submodule_search_locations is not None else Path(spec.origin)
    return None


def _place(module: str) -> Path | None:
    """The folder of a module's outermost package that has code of its own, or the module's file."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        loaded = sys.modules.get(".".join(parts[:depth]))
        file = getattr(loaded, "__file__", None)
        if file is not None:
            return Path(file).parent if hasattr(loaded, "__path__") else Path(file)
    return None  # typed in at a prompt


def _sources(place: Path | None) -> Iterable[Path]:
    if place is None:
        return ()
    # What suits a folder of one's own (`ltcore.contract.suited`) changes no figure of a recipe.
    return sorted(p for p in place.rglob("*.py") if p.name != SUITED) if place.is_dir() else (place,)


def _digest(files: Iterable[Path]) -> str:
    ordered = sorted(files)
    if not ordered:
        return "unknown"
    digest = hashlib.sha256()
    for path in ordered:
        content = path.read_bytes()
        digest.update(f"{path.parent.name}/{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]
