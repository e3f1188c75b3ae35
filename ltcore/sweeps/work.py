"""From recipes to trained jobs: what ``ltcore sweep`` and ``ltcore table --run`` have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ltcore.errors import RecipeError
from ltcore.recipe.loading import LoadedRecipe
from ltcore.sweeps.engine import Engine, Outcome, Slots
from ltcore.sweeps.folder import JobFolder, write_job
from ltcore.sweeps.jobs import Job, with_shared
from ltcore.sweeps.prints import prints_of
from ltcore.sweeps.view import looking_on


def prepared(asked: Sequence[tuple[str, LoadedRecipe]], folder: Path) -> tuple[list[JobFolder], list[JobFolder]]:
    """The folders of jobs, made where they are missing.

    Args:
        asked: name and recipe of each run.
        folder: the sweep's directory.

    Returns:
        A job for each of `asked`; and all that are to be done, each once, with what they take over before them.

    Raises:
        LtcoreError: data is missing, a method is not installed, or the directory cannot be written.
    """
    prints = prints_of([loaded for _, loaded in asked])
    jobs = [Job(name, loaded, data) for (name, loaded), data in zip(asked, prints, strict=True)]
    every = {job.address: write_job(folder, job) for job in with_shared(jobs)}
    ordered: dict[str, JobFolder] = {}

    def add(job: JobFolder) -> None:
        """Put it behind what it takes over, which an earlier sweep may have said."""
        after = job.about["after"]
        if after is not None and after not in ordered:
            add(JobFolder(job.path.parent / after))
        ordered[job.address] = job

    for job in every.values():
        add(job)
    return [every[job.address] for job in jobs], list(ordered.values())


def train(jobs: Sequence[JobFolder], slots: Slots, beneath: Callable[[], str] | None = None) -> Outcome:
    """Train what is not done, and tell how it goes.

    Args:
        jobs: as `prepared` gives them.
        slots: what on.
        beneath: text to show while it goes on.

    Raises:
        KeyboardInterrupt: it was told to stop.
    """
    with looking_on(len(jobs), beneath) as observer:
        return Engine(jobs, slots, observer).run()


def raise_failed(outcome: Outcome, folder: Path) -> None:
    """Say what has failed, once all the others are done.

    Raises:
        RecipeError: something has; each with its message and its log.
    """
    if not outcome.failed:
        return
    lines = [f"{len(outcome.failed)} of the runs failed:"]
    lines += [f"{message} (log: {folder / 'jobs' / key / 'log.txt'})" for key, message in outcome.failed.items()]
    if outcome.blocked:
        names = ", ".join(f"{job.about['name']} (seed {job.about['seed']})" for job in outcome.blocked)
        lines.append(f"not trained, since their first stages failed: {names}")
    lines.append("start the same command again once that is mended; what is done is not trained again")
    raise RecipeError(*lines)
