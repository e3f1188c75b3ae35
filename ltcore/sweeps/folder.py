"""A sweep's directory: a folder a job, which any number of processes, on any number of machines, work through.

A job's folder, ``DIR/jobs/ADDRESS/``:

- ``job.json``: what it is, and ``recipe.yaml``, what it trains; neither ever changes.
- ``runs/``: the run, as `ltcore run` makes it. The job is done once that has its ``result.json``.
- ``lock``: held by whatever process trains it, its engine killed or not.
- ``attempts.jsonl``: a line whenever training begins or goes on.
- ``log.txt``: what the run has printed. ``failed.json``: why it did not end; the next attempt removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ltcore.errors import LtcoreError, RunError
from ltcore.files.reading import read_json, read_lines
from ltcore.files.unfinished import in_use
from ltcore.files.writing import append, own, telling, temporary_folder, write_atomically
from ltcore.recipe.yaml_source import dump_yaml
from ltcore.sweeps.jobs import Job

#: What to do once what the system refused is mended.
AGAIN = "then start the same command again, which goes on with what is there"


@dataclass(frozen=True)
class JobFolder:
    """The folder of a job.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def address(self) -> str:
        """The job's address."""
        return self.path.name

    @cached_property
    def about(self) -> dict[str, Any]:
        """What `write_job` has written.

        Raises:
            RunError: it is not there, or damaged.
        """
        found = read_json(self.path / "job.json")
        if not isinstance(found, dict) or not {"name", "seed", "digest", "after", "lengths"} <= set(found):
            raise RunError(f"{self.path / 'job.json'}: is damaged; remove {self.path} and start again")
        return found

    @property
    def run(self) -> Path | None:
        """The directory of the job's run; None before it has one."""
        runs = [path.parent for path in self.path.glob("runs/*/[!.]*/recipe.yaml")]
        return max(runs, key=lambda path: (path / "recipe.yaml").stat().st_mtime_ns) if runs else None

    @property
    def finished(self) -> Path | None:
        """The directory of the job's run once that has ended, else None."""
        return next((path.parent for path in sorted(self.path.glob("runs/*/[!.]*/result.json"))), None)

    @property
    def failure(self) -> dict[str, Any] | None:
        """Why the last attempt did not end: ``message``, ``exit_code``, ``when``; None where nothing has failed."""
        with suppress(LtcoreError, FileNotFoundError):
            found = read_json(self.path / "failed.json") if (self.path / "failed.json").exists() else None
            return found if isinstance(found, dict) else None
        return None

    def fail(self, message: str, exit_code: int) -> None:
        """Say why it did not end.

        Raises:
            RunError: it cannot be written.
        """
        content = {"message": message, "exit_code": exit_code, "when": time.time(), "host": socket.gethostname()}
        write_atomically(self.path / "failed.json", json.dumps(content).encode(), AGAIN)

    def lock(self) -> int | None:
        """A descriptor that holds the job's lock, to be handed on to what trains it; None where another has it.

        Raises:
            RunError: it cannot be locked at all.
        """
        path = self.path / "lock"
        with telling(path, AGAIN):
            descriptor = own(path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError:
                os.close(descriptor)
                raise
        return descriptor

    @property
    def locked(self) -> bool:
        """Whether a process trains it now, on this machine or another."""
        return in_use(self.path)

    def attempts(self) -> list[Mapping[str, Any]]:
        """Each time when training began or went on: ``when``, ``host``, ``threads``, ``resumed``."""
        path = self.path / "attempts.jsonl"
        found = []
        with suppress(OSError):
            for line in path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # a line that a full disk has cut
                    found.append(json.loads(line))
        return found

    def begin(self, threads: int | None, resumed: bool) -> None:
        """Note that training begins or goes on.

        Raises:
            RunError: it cannot be written.
        """
        (self.path / "failed.json").unlink(missing_ok=True)
        line = {"when": time.time(), "host": socket.gethostname(), "threads": threads, "resumed": resumed}
        append(self.path / "attempts.jsonl", json.dumps(line) + "\n")

    def share(self) -> float:
        """How much of its training is done, from 0 to 1, as its ``metrics.jsonl`` tells."""
        if self.finished:
            return 1.0
        run = self.run
        lines: Sequence[Mapping[str, Any]] = []
        with suppress(LtcoreError, FileNotFoundError):
            lines = read_lines(run / "metrics.jsonl") if run else []
        lengths: dict[str, int | None] = dict(self.about["lengths"])
        done = dict.fromkeys(lengths, 0.0)
        for line in lines:
            name = line["stage"]
            if name not in lengths:
                continue
            for earlier in lengths:
                if earlier == name:
                    break
                done[earlier] = 1.0
            # The length of a stage that counts steps is not known in epochs.
            done[name] = min((line["epoch"] + 1) / lengths[name], 1.0) if lengths[name] else 0.0
        weights = {name: length or 10 for name, length in lengths.items()}
        return sum(done[name] * weights[name] for name in lengths) / sum(weights.values())

    def last_words(self) -> str:
        """The last message of the run's log."""
        with suppress(OSError):
            lines = (self.path / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""


def write_job(folder: Path, job: Job) -> JobFolder:
    """The folder of a job in a sweep's directory, made where it is not there yet.

    Raises:
        RunError: it cannot be written.
    """
    path = folder / "jobs" / job.address
    found = JobFolder(path)
    if (path / "job.json").exists():
        return found
    recipe = job.loaded.recipe
    about = {
        "name": job.name,
        "seed": recipe.seed,
        "digest": job.digest,
        "code": job.code,
        "data": job.data,
        "after": job.after,
        "lengths": [[stage.name, stage.epochs] for stage in recipe.stages],
        "threads": None if recipe.threads == "auto" else recipe.threads,
        "frozen": recipe.stages[0].cache != "off" and recipe.select is None,
    }
    with telling(path, AGAIN):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path.parent) as made:
            whole = made / "job"
            whole.mkdir()
            (whole / "recipe.yaml").write_text(dump_yaml(job.loaded.source), encoding="utf-8")
            for file in job.loaded.code.values():
                (whole / file.name).write_bytes(file.content)
            (whole / "job.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            try:
                whole.rename(path)
            except OSError:
                if not (path / "job.json").exists():  # else another process was as quick
                    raise
    return found


def folders(folder: Path) -> Iterator[JobFolder]:
    """The jobs in a sweep's directory, by address."""
    for path in sorted(folder.glob("jobs/*/job.json")):
        yield JobFolder(path.parent)
