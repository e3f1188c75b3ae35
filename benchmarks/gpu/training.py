"""Several runs at once until all have ended or the time is over."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu.jobs import Job, pick
from gpu.records import Notes, Parcel, files_of, record


class Trainer:
    """Runs jobs, several at once, until all have ended or the time is over.

    Args:
        all_jobs: every job, those that have ended too: their first stages may be taken over.
        done: digests of those that have ended.
        room: where runs are kept on this machine.
        notes: where lines go.
        parcel: where files go.
        environment: for the records.
        at_once: how many jobs.
    """

    def __init__(
        self,
        all_jobs: list[Job],
        done: set[str],
        room: Path,
        notes: Notes,
        parcel: Parcel,
        environment: dict[str, Any],
        at_once: int,
    ) -> None:
        self.jobs, self.room, self.notes, self.parcel = all_jobs, room, notes, parcel
        self.environment, self.at_once = environment, at_once
        self.waiting = [job for job in all_jobs if job.digest not in done]
        self.running: dict[Job, tuple[subprocess.Popen[bytes], float]] = {}
        self.failed = 0

    def run_of(self, job: Job, ended: bool) -> Path | None:
        """The run of a job that has ended, or that was begun and has a checkpoint; the latest one."""
        wanted = "result.json" if ended else "checkpoints/last.safetensors"
        runs = sorted(path for path in (self.room / "runs" / job.folder).glob("*/*") if (path / wanted).is_file())
        return runs[-1] if runs else None

    def trained(self) -> list[Job]:
        """Jobs whose first stage can be taken over."""
        found = [(job, self.run_of(job, ended=True)) for job in self.jobs if job not in self.running]
        return [job for job, run in found if run and list((run / "checkpoints").glob("stage-0-*"))]

    def start(self, job: Job, source: Job | None) -> None:
        """Begin a job, or go on with it."""
        command = [sys.executable, "-m", "ltcore", "run", str(job.file), "--seed", str(job.seed)]
        command += ["--out", str(self.room / "runs" / job.folder)]
        how = ""
        if self.run_of(job, ended=False):
            command, how = [*command, "--resume"], ", from its checkpoint"
        elif source:
            command, how = [*command, "--from", str(self.run_of(source, ended=True))], f", from {source.name}"
        self.notes.say(f"started {job.name} seed {job.seed}{how}")
        log = self.room / "runs" / job.folder / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(command, cwd=self.room, stdout=file, stderr=subprocess.STDOUT)
        self.running[job] = process, time.monotonic()

    def ended(self, job: Job, code: int, seconds: float) -> None:
        """Write down how a job ended."""
        run = self.run_of(job, ended=True)
        if code or run is None:
            self.failed += 1
            tail = (self.room / "runs" / job.folder / "log.txt").read_text(errors="replace")[-1500:]
            line = {"name": job.name, "seed": job.seed, "digest": job.digest, "exit": code, "log": tail}
            self.notes.add("results.jsonl", json.dumps(line))
            self.notes.say(f"FAILED {job.name} seed {job.seed}, exit {code}: {tail.strip().splitlines()[-1:]}")
            return
        line = record(run, job, self.environment, seconds, self.at_once)
        self.notes.add("results.jsonl", json.dumps(line))
        kept = self.parcel.add(
            run, f"{job.folder}/{job.name}", files_of(run, json.loads((run / "result.json").read_text()))
        )
        top1, lost = 100 * line["figures"]["top1"], "" if kept else ", no room for its files"
        self.notes.say(f"ended {job.name} seed {job.seed}: top-1 {top1:.2f} in {seconds:.0f} s{lost}")

    def run(self, until: float) -> None:
        """Train until all jobs have ended or ``time.monotonic()`` is `until`; then keep what is unfinished."""
        while (self.waiting or self.running) and time.monotonic() < until:
            while len(self.running) < self.at_once and (found := pick(self.waiting, self.running, self.trained())):
                self.waiting.remove(found[0])
                self.start(*found)
            time.sleep(0.2)
            for job, (process, since) in list(self.running.items()):
                if process.poll() is not None:
                    del self.running[job]
                    self.ended(job, process.returncode, time.monotonic() - since)
        for process, _ in self.running.values():
            process.kill()
        for job, (process, since) in self.running.items():
            process.wait()
            run = self.run_of(job, ended=False)
            kept = run and self.parcel.add(run, f"{job.folder}/{job.name}", files_of(run, None))
            how = "its checkpoint goes home" if kept else "nothing of it is kept"
            self.notes.say(f"unfinished {job.name} seed {job.seed} after {time.monotonic() - since:.0f} s: {how}")
        if self.waiting:
            self.notes.say(f"not begun: {', '.join(f'{job.name} seed {job.seed}' for job in self.waiting)}")
