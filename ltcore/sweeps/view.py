"""A sweep while it goes on: lines in a log file; on a terminal one bar per run, and what has failed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from ltcore.sweeps.engine import Engine, Observer
from ltcore.sweeps.folder import JobFolder
from ltcore.untrusted import printable

if TYPE_CHECKING:
    from rich.console import RenderableType


class Lines(Observer):
    """A line for each thing that happens.

    Args:
        stream: where to.
        total: how many jobs there are.
        changed: is called when a job has ended.
    """

    def __init__(self, stream: TextIO, total: int, changed: Callable[[], object] | None = None) -> None:
        self.stream, self.total, self.changed, self.done = stream, total, changed, 0

    def began(self, job: JobFolder, again: bool) -> None:
        """A job's training begins, or goes on."""
        self._say(f"{'goes on' if again else 'begins'}: {job.about['name']}, seed {job.about['seed']}")

    def ended(self, job: JobFolder) -> None:
        """A job has its result."""
        self.done += 1
        self._say(f"done ({self.done} of {self.total}): {job.about['name']}, seed {job.about['seed']}")
        if self.changed:
            self.changed()

    def failed(self, job: JobFolder, message: str) -> None:
        """A job has failed."""
        self._say(f"failed: {job.about['name']}, seed {job.about['seed']}: {message}")

    def told(self, text: str) -> None:
        """Something else to know."""
        self._say(text)

    def _say(self, text: str) -> None:
        print(printable(text), file=self.stream, flush=True)


class Screen(Observer):
    """The whole on a terminal, drawn anew once per second.

    Args:
        total: how many jobs there are.
        beneath: text that stands under the bars, such as the table that fills up.
    """

    def __init__(self, total: int, beneath: Callable[[], str] | None = None) -> None:
        from rich.live import Live

        self.total, self.beneath = total, beneath
        self._table, self._stale, self._drawn = "", True, 0.0
        self.live = Live(refresh_per_second=2, transient=True)

    def __enter__(self) -> Screen:
        """Begin to draw."""
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and leave the terminal as it was."""
        self.live.stop()

    def ended(self, job: JobFolder) -> None:
        """A job has its result, so the table has changed."""
        self._stale = True

    def failed(self, job: JobFolder, message: str) -> None:
        """A job has failed; it stays on the screen above."""
        self.live.console.print(printable(f"failed: {job.about['name']}, seed {job.about['seed']}: {message}"))

    def told(self, text: str) -> None:
        """Something else to know."""
        self.live.console.print(printable(text))

    def looked(self, engine: Engine) -> None:
        """Draw."""
        if time.monotonic() - self._drawn < 1:
            return
        if self._stale and self.beneath:
            self._table, self._stale = self.beneath(), False
        outcome = engine.outcome
        head = f"{len(outcome.done)} of {self.total} done, {len(engine.running)} running"
        head += f", {len(outcome.failed) + len(outcome.blocked)} failed" if outcome.failed else ""
        self.live.update(drawn(head, [(work.job, work.began) for work in engine.running], self._table))
        self._drawn = time.monotonic()


def drawn(head: str, running: Sequence[tuple[JobFolder, float]], beneath: str = "") -> RenderableType:
    """Bars, with what stands above and beneath them.

    Args:
        head: one line.
        running: jobs at work, and since when.
        beneath: any text.
    """
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bars = Table.grid(padding=(0, 1))
    for job, began in running:
        share = job.share()
        name = Text(printable(f"{job.about['name']} seed {job.about['seed']}"), overflow="ellipsis", no_wrap=True)
        bars.add_row(name, ProgressBar(1.0, share, width=30), f"{share:4.0%}", left(share, began))
    return Group(Text(head), bars, Text(beneath))


def left(share: float, began: float) -> str:
    """How long a job will still take, from how long it has taken; nothing before a tenth of it is done."""
    if not 0.1 <= share < 1:
        return ""
    seconds = (time.time() - began) * (1 - share) / share
    return f"{seconds / 3600:.1f} h left" if seconds > 5400 else f"{seconds / 60:.0f} min left"


@contextmanager
def looking_on(total: int, beneath: Callable[[], str] | None = None) -> Iterator[Observer]:
    """What suits standard output: a screen on a terminal, else lines."""
    if sys.stdout.isatty():
        with Screen(total, beneath) as screen:
            yield screen
    else:
        yield Lines(sys.stdout, total, beneath)


def status(jobs: Sequence[JobFolder]) -> list[dict[str, Any]]:
    """What has become of each job, from the directory alone, so from any machine that sees it.

    Returns:
        For each job ``name``, ``seed``, ``state`` (`done`, `running`, `failed`, `stopped`, `waiting`), ``share`` from 0
        to 1, ``since`` (seconds since 1970, of the last attempt), ``message`` of what has failed, and ``folder``.
    """
    found = []
    for job in jobs:
        attempts, failure = job.attempts(), job.failure
        begun = "stopped" if attempts else "waiting"
        state = "done" if job.finished else "running" if job.locked else "failed" if failure else begun
        found.append(
            {
                "name": job.about["name"],
                "seed": job.about["seed"],
                "state": state,
                "share": job.share(),
                "since": attempts[-1]["when"] if attempts else None,
                "message": failure["message"] if failure and state == "failed" else None,
                "folder": str(job.path),
            }
        )
    return found


def status_text(rows: Sequence[dict[str, Any]]) -> str:
    """`status` as text: the counts, then what runs, what has failed and what was stopped."""
    states = [row["state"] for row in rows]
    counted = [f"{states.count(state)} {state}" for state in ("done", "running", "failed", "stopped", "waiting")]
    lines = [", ".join(text for text in counted if not text.startswith("0 ")) or "no jobs"]
    width = max((len(row["name"]) for row in rows), default=0)
    for state in ("running", "failed", "stopped"):
        for row in (row for row in rows if row["state"] == state):
            bar = "#" * round(20 * row["share"])
            said = row["message"] or (left(row["share"], row["since"]) if state == "running" else "")
            lines.append(
                f"{state:8} {row['name']:{width}} seed {row['seed']}  [{bar:20}] {row['share']:4.0%}  {said}".rstrip()
            )
            if state == "failed":
                lines.append(f"         its log: {row['folder']}/log.txt")
    return "\n".join(map(printable, lines)) + "\n"
