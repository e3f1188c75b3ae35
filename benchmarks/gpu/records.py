"""What comes home from a GPU machine: lines that are on the disk once they are known, and tars of bounded size."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltcore.sweeps.folder import JobFolder

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


class Parcel:
    """Tar files of bounded number and size; what was added stays whole when the program is killed."""

    def __init__(self, folder: Path, count: int = TARS, size: int = TAR_BYTES) -> None:
        self.paths, self.size = [folder / f"runs-{number}.tar" for number in range(count)], size

    def add(self, folder: Path, files: Iterable[Path]) -> bool:
        """Add files of a folder under its name; False where no tar has room for all of them."""
        files = [file for file in files if file.is_file()]
        needed = sum(file.stat().st_size + 1536 for file in files) + 10240
        for path in self.paths:
            if path.exists() and path.stat().st_size + needed > self.size:
                continue
            try:
                with tarfile.open(path, "a") as tar:
                    for file in files:
                        tar.add(file, f"{folder.name}/{file.relative_to(folder)}")
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


def files_of(job: JobFolder, continued: bool) -> Iterator[Path]:
    """What is kept of a job: what `ltcore sweep` needs to know it, and the small files of its run.

    Args:
        job: the job's folder.
        continued: whether something goes on from it, itself or a job that takes its stages over; then their states are
            kept, too, and the fingerprint of the data.
    """
    yield from (job.path / name for name in ("job.json", "recipe.yaml", "attempts.jsonl"))
    if job.run is not None:
        yield from _of_run(job.run, continued)


def _of_run(run: Path, continued: bool) -> Iterator[Path]:
    yield from sorted(run.glob("*.json*"))
    yield run / "recipe.yaml"
    if continued:
        states = "stage*.safetensors", *([] if (run / "scores.json").exists() else ["last.safetensors"])
        yield from sorted(path for pattern in states for path in (run / "checkpoints").glob(pattern))
        yield run / "data.npz"
        for candidate in sorted(run.glob("select/*")):  # runs of their own, of a recipe that selects
            yield from _of_run(candidate, True)
