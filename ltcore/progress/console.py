"""What a run prints: a progress bar on a terminal, plain lines in a log file. rich is imported only for a terminal."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

from ltcore.contract.figures import CONSOLE, FIGURES, STAGE_LINE
from ltcore.contract.result import Figures
from ltcore.untrusted import printable

if TYPE_CHECKING:
    from rich.console import Console

Row = tuple[str, Figures]
"""A name (a stage's, or ``after calibration``) and its figures, as evaluation gives them."""

_NAME_WIDTH = 24
_COLUMN_WIDTH = 9  # 24 + 6 * 9 = 78: the table fits a terminal of 80 columns

_SECONDS_BETWEEN_LINES = 60.0


def results_table(rows: Sequence[Row]) -> str:
    """Figures as plain text of at most 78 columns, in percent with one decimal; ``-`` where a figure is missing.

    Args:
        rows: one for each stage, then calibration's; figures are fractions, missing ones None or absent.
    """
    from rich.cells import set_cell_size  # names may hold characters that are two columns wide

    lines = ["percent".ljust(_NAME_WIDTH) + "".join(FIGURES[name].short.rjust(_COLUMN_WIDTH) for name in CONSOLE)]
    for name, figures in rows:
        values = "".join(_percent(figures.get(key)).rjust(_COLUMN_WIDTH) for key in CONSOLE)
        lines.append(set_cell_size(name, _NAME_WIDTH) + values)
    return "\n".join(lines)


class Reporter:
    """Tells the user how a run goes. As a context manager it leaves the terminal as it found it, error or not.

    Epochs, steps and stages count from 0 in every argument and from 1 in what is printed.

    Args:
        stream: where to print; standard output by default.
        console: a rich console to draw on in place of `stream`.
        clock: seconds, for the line a minute.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = console.file if console is not None else stream if stream is not None else sys.stdout
        self._clock = clock
        if console is None and self._stream.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console

            console = Console(file=self._stream)
        self._console = console
        self._bar: _Bar | None = None
        self._title = ""
        self._epochs = self._steps = self._first_epoch = 0
        self._began = self._last_line = 0.0
        self._done_before = 0

    @classmethod
    def silent(cls) -> Self:
        """One that prints nothing."""
        return cls(io.StringIO())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_bar()

    def run_started(self, recipe_name: str, run_dir: Path | str, lines: Sequence[str]) -> None:
        """Name the run and its directory, then print `lines` (data, model, device) as they are."""
        self._print(f"{recipe_name}: {run_dir}", style="bold")
        for line in lines:
            self._print(f"  {line}")

    def stage_started(
        self,
        name: str,
        index: int,
        count: int,
        epochs: int,
        steps_per_epoch: int,
        first_epoch: int,
        first_step: int = 0,
    ) -> None:
        """Open stage `index` of `count`; a run that is being resumed there begins at `first_step` of `first_epoch`."""
        self._stop_bar()
        self._title = f"stage {index + 1}/{count} {name}"
        self._epochs, self._steps, self._first_epoch = epochs, steps_per_epoch, first_epoch
        self._began = self._last_line = self._clock()
        self._done_before = first_epoch * steps_per_epoch + first_step
        if self._console is not None:
            self._bar = _Bar(self._console, self._title, epochs, steps_per_epoch, first_epoch)
            return
        resumed = f", from epoch {first_epoch + 1} on" if first_epoch else ""
        self._print(f"{self._title}: {_plural(epochs, 'epoch')} of {_plural(steps_per_epoch, 'step')}{resumed}")

    def step(self, epoch: int, step: int, loss: Callable[[], float] | None, images_per_second: float) -> None:
        """Show that `step` of `epoch` is done.

        Args:
            epoch: epoch of the stage, from 0.
            step: step in the epoch, from 0.
            loss: the loss so far; called only where it is printed, because it may wait for the device.
            images_per_second: speed of late.
        """
        if self._bar is not None:
            self._bar.show(epoch, step + 1, None if loss is None else loss(), images_per_second)
        elif self._console is None and self._clock() - self._last_line >= _SECONDS_BETWEEN_LINES:
            value = "" if loss is None else f"  loss {loss():.4f}"
            self._print(
                f"  epoch {epoch + 1}/{self._epochs}  step {step + 1}/{self._steps}{value}"
                f"  {images_per_second:,.0f} images/s{self._left(epoch, step + 1)}"
            )
            self._last_line = self._clock()

    def epoch_ended(
        self,
        epoch: int,
        epochs: int,
        loss: float | None,
        lr: float,
        seconds: float,
        images_per_second: float,
        validation: Mapping[str, float | None] | None = None,
    ) -> None:
        """Close an epoch.

        Args:
            epoch: epoch of the stage, from 0.
            epochs: how many the stage has.
            loss: its mean loss; None where the stage has none.
            lr: its last learning rate.
            seconds: how long it took.
            images_per_second: rows trained on, over that time.
            validation: figures on held-out images, where it was the epoch's turn.
        """
        if self._bar is not None:
            self._bar.show(epoch, self._steps, loss, images_per_second)
        elif self._console is None and self._has_line(epoch, epochs):
            value = "-" if loss is None else f"{loss:.4f}"
            more = f"  lr {lr:.4g}"
            if validation is not None:  # in place of the rate, for 80 columns
                more = f"  held out {_percent(validation['balanced_accuracy'])}"
            self._print(
                f"  epoch {epoch + 1:>{len(str(epochs))}}/{epochs}  loss {value}{more}"
                f"  {_duration(seconds)}  {images_per_second:,.0f} images/s{self._left(epoch, self._steps)}"
            )
        # Also where no line was due: a line a minute is for epochs longer than that, not for a row of short ones.
        self._last_line = self._clock()

    def stage_ended(self, name: str, figures: Figures | None, seconds: float) -> None:
        """Close a stage; `figures` are None for one that is not evaluated."""
        self._stop_bar()
        title = self._title or f"stage {name}"
        named = [f"{FIGURES[name].short} {_percent(figures.get(name))}" for name in STAGE_LINE] if figures else []
        shown = ", ".join(named)
        self._print(f"{title}: done in {_duration(seconds)}{'; ' if shown else ''}{shown}")

    def finished(self, rows: Sequence[Row], run_dir: Path | str) -> None:
        """Print the table of results and, as the last line, where they are."""
        self._stop_bar()
        header, *body = results_table(rows).splitlines()
        self._print("")
        self._print(header, style="bold")
        for line in body:
            self._print(line)
        self._print("")
        self._print(f"results: {run_dir}")

    def note(self, text: str) -> None:
        """Print a line of text, above the progress bar where there is one."""
        self._print(text)

    def _has_line(self, epoch: int, epochs: int) -> bool:
        """Whether a log has a line for this epoch: all up to 20; else the first, the last and round numbers."""
        return epoch in (self._first_epoch, epochs - 1) or (epoch + 1) % _interval(epochs) == 0

    def _left(self, epoch: int, steps: int) -> str:
        """How long the rest of the stage takes, as fast as it went until now; nothing where it is done."""
        done, total = epoch * self._steps + steps, self._epochs * self._steps
        taken = self._clock() - self._began
        if done <= self._done_before or done >= total or taken <= 0:
            return ""
        return f"  {_roughly(taken * (total - done) / (done - self._done_before))} left"

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, text: str, style: str | None = None) -> None:
        text = printable(text)
        # A log in ASCII must not end a run because a stage's name has an accent.
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        if self._console is None:
            print(text, file=self._stream, flush=True)  # flushed, or a log would lag by kilobytes
        else:
            # Names and paths may hold brackets, which are no markup; a long path must stay in one piece.
            self._console.print(text, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)


class _Bar:
    """A stage's progress bar: stage, bar, epoch, loss, images per second, time left."""

    def __init__(self, console: Console, title: str, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        def text(field: str) -> TextColumn:
            return TextColumn("{task." + field + "}", markup=False, table_column=Column(no_wrap=True))

        # Drawn by `show` alone: a thread that redraws would take Python's lock from the training loop.
        self._progress = Progress(
            text("description"),
            BarColumn(bar_width=None),
            text("fields[status]"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            auto_refresh=False,
            expand=True,
        )
        self._epochs, self._steps = epochs, steps_per_epoch
        self._loss: float | None = None
        self._task = self._progress.add_task(
            title, total=epochs * steps_per_epoch, completed=first_epoch * steps_per_epoch, status=""
        )
        self._progress.start()

    def show(self, epoch: int, steps_done: int, loss: float | None, images_per_second: float) -> None:
        """Move to `steps_done` steps of `epoch`; a `loss` of None keeps the one that is shown."""
        self._loss = self._loss if loss is None else loss
        value = "" if self._loss is None else f"  loss {self._loss:.3f}"
        self._progress.update(
            self._task,
            completed=epoch * self._steps + steps_done,
            status=f"epoch {epoch + 1}/{self._epochs}{value}  {images_per_second:,.0f} im/s",
        )
        self._progress.refresh()

    def stop(self) -> None:
        """Remove the bar and show the cursor again."""
        self._progress.stop()


def _interval(epochs: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that divides `epochs` into at most 20 parts."""
    scale = 1
    while epochs > 20 * 5 * scale:
        scale *= 10
    return next(n * scale for n in (1, 2, 5) if epochs <= 20 * n * scale)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _roughly(seconds: float) -> str:
    """Seconds as ``12 s``, ``3 min`` or ``2 h 05 min``."""
    if seconds < 59.5:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _duration(seconds: float) -> str:
    """Seconds as ``0.4 s``, ``12 s``, ``3 min 12 s`` or ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
