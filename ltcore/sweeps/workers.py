"""Worker processes: of a search on this machine, and of anything through submitit on a cluster's machines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.errors import RecipeError, RunError
from ltcore.sweeps.engine import Engine, Outcome, Slots
from ltcore.sweeps.folder import JobFolder

if TYPE_CHECKING:
    import submitit


class Worker:
    """Trains a sweep's jobs, one at a time, until none is left; what submitit runs on another machine.

    Workers share nothing but the directory: whoever finds a job's lock free takes it.

    Args:
        jobs: the folders of the jobs.
        threads: of each run.
    """

    def __init__(self, jobs: Sequence[Path], threads: int) -> None:
        self.jobs, self.threads = list(jobs), threads
        self._engine: Engine | None = None

    def __call__(self) -> int:
        """Work; returns how many jobs this worker has trained."""
        self._engine = Engine([JobFolder(path) for path in self.jobs], Slots(1, self.threads))
        return self._engine.run().trained

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit calls before the time is over or the machine is taken away: stop, and be queued again."""
        import submitit

        if self._engine is not None:
            for work in self._engine.running:
                work.process.send_signal(signal.SIGTERM)
            for work in self._engine.running:
                work.process.wait()
        return submitit.helpers.DelayedSubmission(Worker(self.jobs, self.threads))


def executor(where: str, folder: Path, settings: Mapping[str, Any]) -> Any:
    """The submitit executor for ``slurm:PARTITION`` or ``local``.

    Args:
        where: what ``--on`` says.
        folder: where submitit keeps its files.
        settings: what it is to ask for beside that, as submitit calls it (``timeout_min``, ``gpus_per_node``, ...).

    Raises:
        RecipeError: submitit is not installed, there is no Slurm here, or `where` or a setting is none.
    """
    try:
        import submitit
    except ImportError:
        raise RecipeError("--on needs submitit. Try: pip install 'ltcore[slurm]'") from None
    kind, _, partition = where.partition(":")
    if kind not in ("slurm", "local") or (kind == "local" and partition):
        raise RecipeError(f"--on {where}: write slurm, slurm:PARTITION or local")
    try:
        made = submitit.AutoExecutor(folder=str(folder / "submitit"), cluster=kind)
    except RuntimeError as error:
        raise RecipeError(f"--on {where}: {error}") from None
    asked = {"name": "ltcore", "timeout_min": 24 * 60, "cpus_per_task": 4, "tasks_per_node": 1}
    if partition:
        asked["slurm_partition"] = partition
    try:
        made.update_parameters(**{**asked, **settings})
    except (NameError, TypeError, ValueError) as error:
        raise RecipeError(f"--cluster: {error}") from None
    return made


def submitted(
    call: Callable[[], Any], number: int, where: str, folder: Path, settings: Mapping[str, Any]
) -> list[submitit.Job[Any]]:
    """The same call on so many machines.

    Raises:
        RecipeError: as of `executor`.
    """
    made = executor(where, folder, settings)
    with made.batch():
        return [made.submit(call) for _ in range(number)]


def wait(submissions: Sequence[submitit.Job[Any]], look: Callable[[], None]) -> None:
    """Wait until all have ended.

    Args:
        submissions: as `submitted` gives them.
        look: is called every few seconds.

    Raises:
        RunError: one of them has failed otherwise than by a run that failed.
    """
    while not all(one.done() for one in submissions):
        look()
        time.sleep(2)
    look()
    failed = [one for one in submissions if one.exception() is not None]
    if failed:
        raise RunError(f"worker {failed[0].job_id} failed: {failed[0].exception()}; its log: {failed[0].paths.stderr}")


def outcome_of(jobs: Sequence[JobFolder], began: float) -> Outcome:
    """What has come of jobs that others have trained since some time."""
    outcome = Outcome()
    for job in jobs:
        failure = job.failure
        if job.finished:
            outcome.done.append(job)
        elif failure and failure["when"] >= began:
            outcome.failed[job.address] = str(failure["message"])
        elif job.about["after"] in outcome.failed or any(job.about["after"] == one.address for one in outcome.blocked):
            outcome.blocked.append(job)
    return outcome


def searching(folder: Path, number: int, threads: int, look: Callable[[], None]) -> None:
    """Worker processes of a search on this machine, until they have ended.

    Args:
        folder: the sweep's directory.
        number: how many.
        threads: of each.
        look: is called once per second.

    Raises:
        RunError: a worker has failed.
        KeyboardInterrupt: it was told to stop, and the workers have.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    log = folder / "search" / "log.txt"
    workers = []
    with open(log, "ab") as stream:
        for _ in range(number):
            command = [sys.executable, "-m", "ltcore.sweeps.search", str(folder)]
            workers.append(
                subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)
            )
    try:
        while any(worker.poll() is None for worker in workers):
            look()
            time.sleep(1)
    except BaseException:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
        raise
    look()
    if all(worker.returncode for worker in workers):
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise RunError(f"the search's workers have failed: {last[0] if last else 'no message'} (log: {log})")
