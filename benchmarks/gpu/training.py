"""What is wanted is trained by the engine of ``ltcore sweep``, until the time is over, and packed up for home."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpu.jobs import Asked
from gpu.records import Notes, Parcel, files_of
from ltcore.recipe.identity import digest
from ltcore.sweeps.engine import Engine, slots_of
from ltcore.sweeps.folder import JobFolder
from ltcore.sweeps.jobs import code_of
from ltcore.sweeps.view import Lines
from ltcore.sweeps.work import prepared
from ltcore.tables.records import Records, record_of

#: Seconds that runs have to end their step and write a checkpoint, once the time is over.
GRACE = 5.0


def missing(
    asked: Sequence[Asked], jobs: Sequence[JobFolder], every: Sequence[JobFolder], known: Records
) -> list[JobFolder]:
    """The jobs that are to be done: those whose runs no record stands for, behind what they take over.

    Args:
        asked: what is wanted.
        jobs: the job of each.
        every: all jobs, what others take over before them.
        known: the committed records.
    """

    def is_known(one: Asked) -> bool:
        home = one.stands_for
        record = home and known.of(digest(home)).get(one.seed)
        return bool(home and record and not record.other_code(code_of(home)))

    needed = {job.address for one, job in zip(asked, jobs, strict=True) if not is_known(one)}
    for job in reversed(every):
        if job.address in needed and job.about["after"] is not None:
            needed.add(job.about["after"])
    return [job for job in every if job.address in needed]


class Keeping(Lines):
    """Writes a record of each run as it ends, packs up what goes home, and ends the engine when the time is over.

    Args:
        asked: by the address of its job, what is wanted.
        total: how many jobs there are.
        sources: addresses of jobs whose stages others take over.
        until: when the time is over, by ``time.monotonic()``.
        notes: where lines go.
        parcel: where files go.
        about: what every record says of the machine; and in ``data`` which data the copy is of.
    """

    def __init__(
        self,
        asked: dict[str, Asked],
        total: int,
        sources: set[str],
        until: float,
        notes: Notes,
        parcel: Parcel,
        about: dict[str, Any],
    ) -> None:
        super().__init__(sys.stdout, total)
        self.asked, self.sources, self.until = asked, sources, until
        self.notes, self.parcel, self.about = notes, parcel, about

    def _say(self, text: str) -> None:
        self.notes.say(text)

    def ended(self, job: JobFolder) -> None:
        """A run has its result: write its record, pack its files."""
        super().ended(job)
        run = job.finished
        if run and (one := self.asked.get(job.address)):
            self.notes.add("results.jsonl", json.dumps(record(run, one, self.about)))
        if not self.parcel.add(job.path, files_of(job, job.address in self.sources)):
            self._say(f"no room for the files of {job.about['name']}, seed {job.about['seed']}")

    def looked(self, engine: Engine) -> None:
        """When the time is over, have the runs write a checkpoint; who is late is killed."""
        if time.monotonic() < self.until:
            return
        engine.stopping = engine.stopping or "the end of its time"
        if time.monotonic() > self.until + GRACE:
            for work in engine.running:
                with suppress(ProcessLookupError):
                    os.killpg(work.process.pid, signal.SIGKILL)

    def unfinished(self, jobs: Sequence[JobFolder]) -> None:
        """Pack what jobs that have not ended can go on from, and name those that have not begun."""
        begun = [job for job in jobs if job.run and not job.finished]
        for job in begun:
            kept = self.parcel.add(job.path, files_of(job, True))
            how = "its checkpoint goes home" if kept else "no room is left for its checkpoint"
            self._say(f"unfinished at {job.share():.0%}: {job.about['name']}, seed {job.about['seed']}: {how}")
        if waiting := [f"{job.about['name']} seed {job.about['seed']}" for job in jobs if not job.run]:
            self._say(f"not begun: {', '.join(waiting)}")


def record(run: Path, one: Asked, about: dict[str, Any]) -> dict[str, Any]:
    """The record of a run as `ltcore.tables.records` has them: of the recipe at home, and its data.

    Raises:
        ValueError: the run's data is not the copy that was packed.
    """
    content = record_of(run, []) | {name: value for name, value in about.items() if name != "data"}
    if one.stands_for is None:
        return content
    if content["data"] != about["data"]["copy"]:
        raise ValueError(f"{run}: was not trained on the images that were packed")
    return content | {"digest": digest(one.stands_for), "data": about["data"]["source"]}


def train(
    asked: Sequence[Asked],
    known: Records,
    room: Path,
    until: float,
    at_once: int,
    notes: Notes,
    parcel: Parcel,
    about: dict[str, Any],
) -> int:
    """Train what no record stands for; returns how many runs failed.

    Args:
        asked: what is wanted, in order of worth.
        known: the committed records.
        room: where the sweep's directory is.
        until: when the time is over, by ``time.monotonic()``.
        at_once: how many runs at a time.
        notes: where lines go; ``results.jsonl`` gets the records.
        parcel: where files go.
        about: see `Keeping`.
    """
    mine, every = prepared([(one.name, one.loaded) for one in asked], room / "sweep")
    todo = missing(asked, mine, every, known)
    by_address = {job.address: one for job, one in zip(mine, asked, strict=True)}
    sources = {str(job.about["after"]) for job in todo}
    keeping = Keeping(by_address, len(todo), sources, until, notes, parcel, about)
    notes.say(f"{len(todo)} jobs for {len(asked)} runs; {at_once} at once, {until - time.monotonic():.0f} s left")
    engine = Engine(todo, slots_of(at_once, 1), keeping)
    with suppress(KeyboardInterrupt):
        engine.run()
    keeping.unfinished(todo)
    return len(engine.outcome.failed)
