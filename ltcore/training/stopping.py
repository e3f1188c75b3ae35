"""Signals by which a machine is taken back: the step is finished, a checkpoint written, and the run says how to go on.

SIGTERM comes from Slurm at the end of a job's time, from systemd, containers and `kill`. SIGUSR1 or SIGUSR2 comes from
Slurm before that, where a job asks for it (``--signal``). SIGHUP comes from a terminal that is closed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: What ends a run in good order.
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(KeyboardInterrupt):
    """A signal has ended the run. Like a key, it is no error, and nothing that catches errors keeps it."""

    exit_code = 143


class _Request:
    """Whether a signal has come, and whether a step is at work that is to be finished first."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.stepping = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; outside of a stage's steps there is nothing to finish."""
        first, self.signal = self.signal is None, self.signal or signal.Signals(number)
        if first and not self.stepping:
            raise Stopped(f"stopped by {self.signal.name}")


_REQUEST = _Request()


@contextmanager
def catching() -> Iterator[None]:
    """End a run in good order when one of `SIGNALS` comes; those that are ignored already (``nohup``) stay so.

    Python delivers signals to its main thread only, so in another one nothing is caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _REQUEST.signal, _REQUEST.stepping = None, False
    caught = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in caught:
        signal.signal(number, _REQUEST.receive)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def steps() -> Iterator[None]:
    """Within the block a signal waits until `asked` is looked at."""
    _REQUEST.stepping = True
    try:
        yield
    finally:
        _REQUEST.stepping = False


def asked() -> bool:
    """Whether a signal has come."""
    return _REQUEST.signal is not None


def stop(place: str) -> Stopped:
    """What to raise once a checkpoint is written.

    Args:
        place: where the run stands.
    """
    by = _REQUEST.signal.name if _REQUEST.signal else "a signal to another process"
    return Stopped(f"stopped by {by} {place}, and a checkpoint is written")
