"""On the GPU machine: look at it, run the tests marked gpu, time, train."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from gpu.jobs import asked_of, default_jobs
from gpu.records import Notes, Parcel, read_lines

#: The folder that was packed, and the project's root.
PACKED = Path(__file__).resolve().parents[1]
ROOT = PACKED.parent
#: Seconds that are kept at the end for packing up.
PACKING = 8.0


def prepare_site(wheels: Path, site: Path) -> None:
    """Unpack the wheels (a wheel is a zip file: no installer is needed) and let this process import them."""
    for wheel in sorted(wheels.glob("*.whl")):
        zipfile.ZipFile(wheel).extractall(site)
    clock = site / "ltcore_epoch_clock-0.dist-info"  # so that recipes can name the methods of the two
    clock.mkdir(exist_ok=True)
    (clock / "METADATA").write_text("Metadata-Version: 2.1\nName: ltcore-epoch-clock\nVersion: 0\n")
    offers = "epoch_clock = gpu.timing:EpochClock\nseed_turns = gpu.sharing:SeedTurns\n"
    (clock / "entry_points.txt").write_text(f"[ltcore.plugins]\n{offers}")
    sys.path.insert(0, str(site))


def lacking(wheels: Path) -> dict[str, str]:
    """What the packed distributions require and this Python does not have, or cannot import: why, by name."""
    from packaging.requirements import Requirement  # travels with us

    modules = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}  # where the name is another
    packed = {re.split(r"-\d", wheel.name)[0].replace("_", "-") for wheel in wheels.glob("ltcore*.whl")}
    wanted = {text for name in packed for text in metadata.requires(name) or ()}
    found: dict[str, str] = {}
    for requirement in sorted(map(Requirement, wanted), key=lambda requirement: requirement.name):
        name = requirement.name
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            have = metadata.version(name)
            import_module(modules.get(name, name.replace("-", "_")))
        except Exception as error:  # whatever a package does when it is imported
            found[name] = f"{type(error).__name__}: {error}"
            continue
        if not requirement.specifier.contains(have, prereleases=True):
            found[name] = f"version {have} is there, {requirement} is needed"
    return found


def describe_machine(packed: dict[str, Any]) -> dict[str, Any]:
    """GPU, driver, cores, versions, and the commit that was packed."""
    import torch

    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()[0]
        gpu, driver, memory = (part.strip() for part in said.split(","))
        gib = float(memory) / 1024
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        gpu, driver, gib = None, None, None
    return {
        "gpu": gpu,
        "driver": driver,
        "gpu_gib": gib and round(gib, 1),
        "cores": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "commit": packed["commit"],
    }


def images(room: Path, short: bool) -> Path:
    """The .npz file of the images, made once."""
    import numpy as np

    from gpu.images import few_of, read

    file = room / ("few.npz" if short else "data.npz")
    if not file.is_file():
        arrays = read(PACKED / "data")
        np.savez(file, **few_of(arrays) if short else arrays)
    return file


def gpu_tests(notes: Notes, seconds: float) -> None:
    """Run the tests that are marked gpu; without a GPU, only collect them."""
    import torch

    there = torch.cuda.is_available()
    files = [p for p in sorted(ROOT.rglob("test_*.py")) if ".venv" not in p.parts and "mark.gpu" in p.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "--import-mode=importlib", "-m", "gpu"]
    # A module that needs what is not there is told of in the log, and keeps no other one from being run.
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors", *map(str, files)]
    if not there:
        command.append("--collect-only")
    notes.say("the tests marked gpu" + ("" if there else ", only collected: there is no GPU"))
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
        notes.say((done.stdout + done.stderr)[-6000:] + f"\npytest's exit code: {done.returncode}")
    except subprocess.TimeoutExpired as error:
        notes.say(f"cut off after {seconds:.0f} s: {str(error.stdout)[-2000:]}")


def timings(notes: Notes, room: Path, data: Path, short: bool, seconds: float) -> None:
    """Time what `gpu.timing` has; a line as soon as one is done."""
    command = [sys.executable, "-m", "gpu.timing", "--root", ROOT, "--data", data]
    command += ["--room", room / "timing", "--seconds", str(seconds), *(["--short"] if short else [])]
    said, until, told = room / "timing.out", time.monotonic() + seconds, 0
    with said.open("w") as output, (room / "timing.err").open("w") as errors:
        process = subprocess.Popen(command, cwd=room, stdout=output, stderr=errors)
        over = False
        while not over:
            time.sleep(0.2)
            over = process.poll() is not None or time.monotonic() > until
            for line in read_lines(said)[told:]:
                notes.add("timing.jsonl", json.dumps(line))
                notes.say(f"timed {line}")
                told += 1
        process.kill()
    if process.wait() < 0:
        notes.say(f"timing: cut off after {seconds:.0f} s")
    elif process.returncode:
        notes.say(f"timing: exit {process.returncode}: {(room / 'timing.err').read_text()[-1500:]}")


def go(arguments: argparse.Namespace) -> None:
    """Test, time and train on the machine that this runs on."""
    began = time.monotonic()
    room = Path(os.environ.get("ROOM") or Path(tempfile.gettempdir()) / "ltcore-gpu")
    out = Path(os.environ.get("OUT") or PACKED / "out")
    notes = Notes(out, room)
    site = room / "site"
    shutil.rmtree(site, ignore_errors=True)
    prepare_site(PACKED / "wheels", site)
    os.environ |= {"PYTHONPATH": f"{site}{os.pathsep}{PACKED}", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    packed = json.loads((PACKED / "pack.json").read_text())
    if wanting := lacking(PACKED / "wheels"):
        carry = " ".join([*packed["asked"], *wanting])
        why = "; ".join(f"{name} ({reason})" for name, reason in wanting.items())
        sys.exit(f"on_a_gpu.py: this Python lacks {why}. Pack again with --carry {carry}")
    environment = describe_machine(packed)
    (out / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")
    notes.say(f"{environment}")
    data = images(room, arguments.short)
    for job in (PACKED / "sweep").glob("jobs/*"):
        if not (target := room / "sweep" / "jobs" / job.name).exists():
            shutil.copytree(job, target)
    if "tests" not in arguments.skip:
        gpu_tests(notes, arguments.test_seconds)
    if "timing" not in arguments.skip and not (room / "timing.jsonl").is_file():
        timings(notes, room, data, arguments.short, arguments.timing_seconds)
    measured = {line["stage"]: line for line in read_lines(room / "timing.jsonl")}.get("CE", {})
    share = measured.get("device_share") if environment["gpu"] else None
    at_once = arguments.jobs or default_jobs(environment["cores"], environment["gpu_gib"], share)
    if "epoch_s" in measured:
        notes.say(f"a run of CE alone needs about {200 * measured['epoch_s']:.0f} s")
    from gpu.training import train  # the packed core is importable by now
    from ltcore.tables.records import Records

    asked = asked_of(arguments.only, arguments.seeds, ROOT, room, data, arguments.short)
    about = {"commit": packed["commit"], "data": packed.get("data"), "at_once": at_once}
    until = began + arguments.seconds - PACKING
    failed = train(asked, Records([ROOT / "results" / "runs"]), room, until, at_once, notes, Parcel(out), about)
    sys.exit(1 if failed else 0)
