"""All of it on this CPU, in small, with a cut-off in the middle."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from gpu.home import bring
from gpu.images import noise, save
from gpu.jobs import ORDER
from gpu.packing import MIB, PACKED, ROOT, pack, run, travelling
from gpu.records import read_lines
from gpu.sharing import FEW
from gpu.timing import lines


def fresh_python(folder: Path, python: str, torch: str | None) -> Path:
    """A new environment with what the GPU machine is said to have, and nothing of what travels."""
    run("uv", "venv", "-q", "--python", python, folder)
    carried = json.loads((PACKED / "pack.json").read_text())["carried"]
    needs = [text for text in metadata.requires("ltcore") or () if "extra ==" not in text]
    needs = [text for text in needs if not any(text.startswith(name) for name in carried)]
    needs += [f"torch=={torch or metadata.version('torch').split('+')[0]}", "pytest", "hypothesis", "pillow"]
    run("uv", "pip", "install", "-q", "--python", folder / "bin" / "python", *needs)
    look = "import sys, importlib.util as u; print(sys.version.split()[0], u.find_spec('pydantic'))"
    found = run(folder / "bin" / "python", "-c", look)
    if found.split()[1] != "None":
        sys.exit("on_a_gpu.py: the rehearsal's Python has pydantic, so carrying it would not be tried")
    print(f"a fresh Python {found.split()[0]} without pydantic", flush=True)
    return folder / "bin" / "python"


def lay_out(project: Path) -> None:
    """Copy what would travel: the repository's files, and what was packed."""
    for path in travelling(ROOT):
        target = project / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.copytree(PACKED, project / ".gpu", ignore=shutil.ignore_patterns("sweep", "out"))
    shutil.rmtree(project / "results" / "runs", ignore_errors=True)  # so that every recipe is trained
    if not (project / ".gpu" / "data").is_dir():
        print("no images were packed: noise stands in for them", flush=True)
        save(noise(), project / ".gpu" / "data")


def taken_away(room: Path) -> None:
    """Kill every process that works below `room`, as when a machine is taken away."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(room).encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                os.kill(int(path.parent.name), signal.SIGKILL)


def cut_off(command: list[str], project: Path, environment: dict[str, str], results: Path, after: int) -> list[str]:
    """Call `go`, and kill it once so many results are there; returns the names of these results."""
    process = subprocess.Popen(command, cwd=project, env=environment, start_new_session=True)
    try:
        while process.poll() is None and len(read_lines(results)) < after:
            time.sleep(0.1)
        if process.poll() is not None:
            sys.exit(f"on_a_gpu.py: the first call ended with {process.returncode} before it could be cut off")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        taken_away(Path(environment["ROOM"]))  # its runs, which an engine that is killed leaves alone
    return [line["recipe"] for line in read_lines(results)]


def rehearse(arguments: argparse.Namespace) -> None:
    """Pack, go and bring on this CPU, with a cut-off in the middle."""
    pack(arguments)
    with tempfile.TemporaryDirectory(prefix="ltcore-rehearsal-") as name:
        folder = Path(name)
        project, out, room = folder / "project", folder / "out", folder / "room"
        lay_out(project)
        python = fresh_python(folder / "venv", arguments.python, arguments.torch)
        clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        clean |= {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1", "OUT": str(out), "ROOM": str(room)}
        command = [str(python), ".gpu/on_a_gpu.py", "go", "--short", "--jobs", "2", "--seeds", "0"]
        command += [word for limit in ("--seconds", "--test-seconds", "--timing-seconds") for word in (limit, "9000")]
        survived = cut_off(command, project, clean, out / "results.jsonl", after=3)
        print(f"\ncut off with SIGKILL; {len(survived)} results survive: {', '.join(survived)}\n", flush=True)
        ended = {path: path.stat().st_mtime_ns for path in room.glob("sweep/jobs/*/runs/*/*/result.json")}
        again = subprocess.run([*command, "--skip", "tests"], cwd=project, env=clean, check=False)
        # What ended before the cut-off is told again by the second call, whose folder may be another.
        names = list(dict.fromkeys(line["recipe"] for line in read_lines(out / "results.jsonl")))
        wanted = sorted(f"cifar100_lt_{name}" for name in ORDER)
        if again.returncode or sorted(names) != wanted or names[: len(survived)] != survived:
            sys.exit(f"on_a_gpu.py: the second call ended with {again.returncode} and these results: {names}")
        if twice := [str(path) for path, when in ended.items() if path.stat().st_mtime_ns != when]:
            sys.exit(f"on_a_gpu.py: trained twice: {twice}")
        timed = read_lines(out / "timing.jsonl")
        alone, together = list(lines(ROOT, room, room, True)), timed[len(timed) - len(FEW) :]
        whole = [line["stage"] for line in timed[: -len(FEW)]] == alone and bool(together[-1].get("over_one"))
        if not whole or any("error" in line for line in timed):
            sys.exit(f"on_a_gpu.py: not everything was timed: {timed}")
        home = list(out.iterdir())
        if len(home) > 8 or any(path.stat().st_size > 16 * MIB for path in home):
            sys.exit(f"on_a_gpu.py: too much comes home: {[(path.name, path.stat().st_size) for path in home]}")
        arguments.folder, arguments.results, arguments.keep = out, folder / "results", folder / "kept"
        bring(arguments)
        if not list(arguments.keep.glob("jobs/*/runs/*/*/checkpoints/stage-0-*")):
            sys.exit("on_a_gpu.py: no first stage came home")
    print("\nthe rehearsal passed: packed, cut off, gone on with, brought home")
