"""What comes home from a GPU machine: lines that are on the disk once they are known, and tars of bounded size."""

from __future__ import annotations

import json
import os
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu.jobs import Job

#: What comes home: few files, none large, since a machine may hand back no more. The four others are small.
TARS, TAR_BYTES = 4, 15 * 2**20


class Notes:
    """Files of lines that are written in several folders at once, a line as soon as it is known."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, line: str) -> None:
        """Append a line, on the disk before this returns."""
        for folder in self.folders:
            path = folder / name
            cut = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
            with path.open("a") as file:
                file.write(("\n" if cut else "") + line + "\n")
                file.flush()
                os.fsync(file.fileno())

    def say(self, text: str) -> None:
        """A line of the log, which is printed too."""
        print(text, flush=True)
        self.add("log.txt", text)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; a line that was cut off when its writer was killed is left out."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def finished(folders: Iterable[Path], committed: Path) -> set[str]:
    """Digests of the runs that have ended: in ``results.jsonl`` of some folders, or committed as JSON files."""
    lines = [line for folder in dict.fromkeys(folders) for line in read_lines(folder / "results.jsonl")]
    lines += [json.loads(path.read_text()) for path in sorted(committed.glob("*.json"))]
    return {line["digest"] for line in lines if "figures" in line}


class Parcel:
    """Tar files of bounded number and size; what was added stays whole when the program is killed."""

    def __init__(self, folder: Path, count: int = TARS, size: int = TAR_BYTES) -> None:
        self.paths, self.size = [folder / f"runs-{number}.tar" for number in range(count)], size

    def add(self, run: Path, name: str, files: Iterable[Path]) -> bool:
        """Add a run's files under ``name/<run id>/``; False where no tar has room for all of them."""
        files = list(files)
        needed = sum(file.stat().st_size + 1536 for file in files) + 10240
        for path in self.paths:
            if path.exists() and path.stat().st_size + needed > self.size:
                continue
            try:
                with tarfile.open(path, "a") as tar:
                    for file in files:
                        tar.add(file, f"{name}/{run.name}/{file.relative_to(run)}")
            except tarfile.ReadError:  # cut off while it was written: no more is added to it
                continue
            return True
        return False


def unpack(path: Path, into: Path) -> None:
    """Take a tar file of `Parcel` apart; one that was cut off gives what it holds in whole."""
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is None:
                    continue
                data = content.read()
                if len(data) == member.size:
                    target = into / member.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(data)
    except tarfile.ReadError:
        pass


def files_of(run: Path, result: dict[str, Any] | None) -> Iterator[Path]:
    """What is kept of a run: small files, the first stage that it trained itself, and what an unfinished one needs."""
    yield from (path for path in sorted(run.glob("*.json*")))
    yield run / "recipe.yaml"
    if result is None:
        yield from sorted(
            p for p in (run / "checkpoints").glob("*.safetensors") if p.name.startswith(("stage", "last"))
        )
    elif not result.get("reused"):
        yield from sorted((run / "checkpoints").glob("stage-0-*.safetensors"))


def figures(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures of a whole split, rounded."""
    return {name: round(value, 5) for name, value in metrics.items() if isinstance(value, float)}


def record(run: Path, job: Job, environment: dict[str, Any], seconds: float, jobs: int) -> dict[str, Any]:
    """The line of a run that has ended."""
    result = json.loads((run / "result.json").read_text())
    stages = [
        {key: stage[key] for key in ("name", "seconds", "images_per_second")} | {"test": figures(stage["test"])}
        for stage in result["stages"]
    ]
    reused = result.get("reused")
    return {
        "name": job.name,
        "seed": job.seed,
        "digest": job.digest,
        "figures": figures(result["after_calibration"]),
        "per_class_accuracy": [round(value, 4) for value in result["after_calibration"]["per_class_accuracy"]],
        "stages": stages,
        "stages_taken_over": reused and {"run": Path(reused["run"]).parents[1].name, "stages": reused["stages"]},
        "selection": result.get("selection"),
        "seconds": round(seconds, 1),
        "jobs": jobs,
        "ended": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "environment": environment | {"versions": result["versions"]},
        "recipe": job.recipe,
    }
