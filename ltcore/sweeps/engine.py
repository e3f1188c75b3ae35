"""The engine: it trains what of a sweep's jobs is not done, several at a time, each in a process of its own.

Engines share nothing but the directory. A job's lock is held by the process that trains it, so it stays held when the
engine is killed and the training goes on. Whoever finds the lock free takes the job where it stands.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from ltcore.errors import LtcoreError, RecipeError
from ltcore.files.writing import telling
from ltcore.sweeps.folder import AGAIN, JobFolder, folders

#: How often a training that was killed is taken up again, before it counts as failed.
TRIES = 3
#: Seconds between two looks at what is going on.
PAUSE = 0.2


@dataclass(frozen=True)
class Slots:
    """What jobs are trained on.

    Attributes:
        jobs: how many at a time.
        threads: of each, where its recipe does not say.
        cards: the GPUs by number; a job gets the one with the fewest. Empty without any.
    """

    jobs: int
    threads: int
    cards: Sequence[str] = ()


@dataclass
class Work:
    """A job that this engine trains now."""

    job: JobFolder
    process: subprocess.Popen[bytes]
    lock: int
    card: str | None
    crowded: bool
    began: float = field(default_factory=time.time)


@dataclass
class Outcome:
    """What has come of a sweep.

    Attributes:
        done: jobs that have a result.
        failed: by address, the message of each that has not.
        blocked: jobs whose first stages have failed.
        trained: how many this engine has brought to their end.
    """

    done: list[JobFolder] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: list[JobFolder] = field(default_factory=list)
    trained: int = 0


class Observer:
    """Looks on; every event may be left out."""

    def began(self, job: JobFolder, again: bool) -> None:
        """A job's training begins, or goes on."""

    def ended(self, job: JobFolder) -> None:
        """A job has its result, whoever trained it."""

    def failed(self, job: JobFolder, message: str) -> None:
        """A job has failed."""

    def told(self, text: str) -> None:
        """Something else to know."""

    def looked(self, engine: Engine) -> None:
        """A moment has passed."""


class Engine:
    """Trains jobs until each is done or has failed.

    Args:
        jobs: what is to be done; what they take over comes first.
        slots: what on.
        observer: looks on.
    """

    #: What a run is started with; its arguments follow.
    program: ClassVar[Sequence[str]] = (sys.executable, "-m", "ltcore")

    def __init__(self, jobs: Sequence[JobFolder], slots: Slots, observer: Observer | None = None) -> None:
        self.jobs, self.slots, self.observer = list(jobs), slots, observer or Observer()
        self.outcome = Outcome()
        self.running: list[Work] = []
        self.room = slots.jobs
        self.stopping: str | None = None
        self._began = time.time()
        self._tries: dict[str, int] = {}
        self._settled: set[str] = set()
        self._passed_on = False

    def run(self) -> Outcome:
        """Train; returns once nothing more can be done.

        Raises:
            KeyboardInterrupt: it was told to stop, by a key or a signal; what was trained is kept.
        """
        with self._signals():
            while not self._step():
                time.sleep(PAUSE)
        if self.stopping:
            raise KeyboardInterrupt(f"stopped by {self.stopping}; what is trained is kept")
        return self.outcome

    def _step(self) -> bool:
        """Look at everything once; returns whether nothing is left."""
        for work in [work for work in self.running if work.process.poll() is not None]:
            self._left(work)
        if self.stopping and not self._passed_on:
            self._passed_on = True  # once: a second signal ends a run at once
            for work in self.running:
                with suppress(ProcessLookupError):
                    work.process.send_signal(signal.SIGTERM)
        waiting = False
        for job in self.jobs:
            if job.address in self._settled or any(work.job == job for work in self.running):
                continue
            waiting |= self._look_at(job)
        self.observer.looked(self)
        return not self.running and (not waiting or self.stopping is not None)

    def _look_at(self, job: JobFolder) -> bool:
        """Settle or start a job; returns whether it is still to come."""
        if job.finished:
            self._done(job)
            return False
        after = job.about["after"]
        if after in self.outcome.failed or any(after == other.address for other in self.outcome.blocked):
            self._settle(job)
            self.outcome.blocked.append(job)
            return False
        failure = job.failure
        if failure and failure["when"] >= self._began and not job.locked:  # here, or in an engine beside this one
            self._failed(job, str(failure["message"]))
            return False
        source = None
        if after is not None:
            source = JobFolder(job.path.parent / after).finished
            if source is None:
                return True
        if len(self.running) < self.room and not self.stopping:
            self._start(job, source)
        return True

    def _start(self, job: JobFolder, source: Path | None) -> None:
        """Begin a job or go on with it, unless another process has it."""
        try:
            lock = job.lock()
            if lock is None:
                return
            with ExitStack() as held:
                held.callback(os.close, lock)
                if job.finished:  # between the look and the lock
                    return
                card = self._card()
                begun = [attempt["threads"] for attempt in job.attempts()]
                threads = job.about["threads"] or (begun[0] if begun else self.slots.threads)
                resumed = job.run is not None
                job.begin(threads, resumed)
                process = self._process(job, source, threads, resumed, card, lock)
                held.pop_all()
        except LtcoreError as error:
            self._failed(job, str(error))
            return
        self.running.append(Work(job, process, lock, card, crowded=bool(self.running)))
        self.observer.began(job, resumed)

    def _process(
        self, job: JobFolder, source: Path | None, threads: int, resumed: bool, card: str | None, lock: int
    ) -> subprocess.Popen[bytes]:
        folder = job.path.absolute()
        command = [*self.program, "run", str(folder / "recipe.yaml"), "--out", str(folder / "runs")]
        command += ["--threads", str(threads)]
        command += ["--resume"] if resumed else []
        command += ["--from", str(source.absolute())] if source else []
        if features := self._features(job):
            command += ["--features", str(features.absolute())]
        environment = dict(os.environ)
        if card is not None:
            environment["CUDA_VISIBLE_DEVICES"] = card
        path = job.path / "log.txt"
        with telling(path, AGAIN), open(path, "ab") as log:
            return subprocess.Popen(  # it starts where the engine did: relative paths of a recipe stay what they are
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=[lock],
                start_new_session=True,
            )

    def _card(self) -> str | None:
        """The GPU that the fewest of the running jobs are on; the first of several such."""
        taken = [work.card for work in self.running]
        return min(self.slots.cards, key=taken.count, default=None)

    def _features(self, job: JobFolder) -> Path | None:
        """Where a job keeps features of its frozen part, and finds those of others; None where no other has the same.

        Those that go on behind the same first stages are together; so are those that begin with a frozen network.
        """
        group = self._group(job)
        others = [other for other in self.jobs if self._group(other) == group]
        return job.path.parents[1] / "features" / group if group and len(others) > 1 else None

    @staticmethod
    def _group(job: JobFolder) -> str | None:
        return job.about["after"] or ("beginning" if job.about.get("frozen") else None)

    def _settle(self, job: JobFolder) -> None:
        """A job is done, or will not be; features that nobody here or elsewhere waits for are removed."""
        self._settled.add(job.address)
        features = self._features(job)
        if features is None or not features.is_dir():
            return
        together = [other for other in self.jobs if self._group(other) == self._group(job)]
        if not all(other.address in self._settled for other in together):
            return
        for other in folders(features.parents[1]):
            with suppress(LtcoreError):  # a damaged one waits for nothing
                if self._group(other) == self._group(job) and other.locked and other != job:
                    return
        shutil.rmtree(features, ignore_errors=True)

    def _left(self, work: Work) -> None:
        """A training has ended, well or not."""
        self.running.remove(work)
        job, code = work.job, work.process.returncode
        try:
            if job.finished:
                self.outcome.trained += 1
                self._done(job)
                return
            if self.stopping:
                return
            killed = code < 0 or code >= 128
            self._tries[job.address] = self._tries.get(job.address, 0) + 1
            words = job.last_words()
            if killed and self._tries[job.address] < TRIES:
                self.observer.told(f"{job.about['name']} was killed ({_how(code)}) and goes on")
            elif "out of memory" in words.lower() and work.crowded:
                self.room = max(self.room - 1, 1)
                self.observer.told(
                    f"{job.about['name']} had no memory beside others; from now on {self.room} at a time"
                )
            else:
                message = f"killed {TRIES} times, at last by {_how(code)}" if killed else words or f"exit code {code}"
                with suppress(LtcoreError):  # the disk may be full, which its message says then
                    job.fail(message, code)
                self._failed(job, message)
        finally:
            os.close(work.lock)

    def _done(self, job: JobFolder) -> None:
        self._settle(job)
        self.outcome.done.append(job)
        self.observer.ended(job)

    def _failed(self, job: JobFolder, message: str) -> None:
        self._settle(job)
        self.outcome.failed[job.address] = message
        self.observer.failed(job, message)

    @contextmanager
    def _signals(self) -> Any:
        """What would end this process is a wish to stop, for as long as the block lasts."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopping = signal.Signals(number).name

        with ExitStack() as stack:
            main = threading.current_thread() is threading.main_thread()  # elsewhere nobody may say what a signal does
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if main else ():
                if signal.getsignal(number) is not signal.SIG_IGN:
                    stack.callback(signal.signal, number, signal.signal(number, stop))
            yield


def _how(code: int) -> str:
    number = -code if code < 0 else code - 128
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"exit code {code}"


def slots_of(jobs: int | None, threads: int | None) -> Slots:
    """What this machine has for so many jobs at a time.

    Args:
        jobs: how many; by default one per GPU, without a GPU one.
        threads: of each; by default the cores are divided.

    Raises:
        RecipeError: more jobs than cores are asked for, where there is no GPU.
    """
    cards = _cards(os.environ)
    cores = len(os.sched_getaffinity(0))
    number = jobs or max(len(cards), 1)
    if not cards and number > cores:
        raise RecipeError(f"--jobs {number}: this machine has {cores} cores and no GPU; a job takes at least one core")
    return Slots(number, threads or max(cores // number, 1), cards)


def _cards(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name for name in visible.split(",") if name.strip() and name.strip() != "-1")
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(told.stdout.split()) if told.returncode == 0 else ()
