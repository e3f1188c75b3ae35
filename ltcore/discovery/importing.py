"""Whether plugins can be imported, found out in another process that may print, hang or die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ltcore.discovery.catalogue import load
from ltcore.discovery.offer import Offer
from ltcore.discovery.sources import reason
from ltcore.errors import PluginError


def import_report(offers: Sequence[Offer], timeout: float = 120) -> dict[str, str | None]:
    """Import every offer in a child process, and tell for each name why that failed, or None.

    What plugins print is discarded. One that ends the process, or takes longer than `timeout` seconds, is blamed, and
    a new process goes on behind it.
    """
    outcomes: list[str | None] = []
    while len(outcomes) < len(offers):
        outcomes += _import_in_child(offers[len(outcomes) :], timeout)
    report: dict[str, str | None] = {}
    for offer, outcome in zip(offers, outcomes, strict=True):  # two distributions may offer one name
        report[offer.name] = report.get(offer.name) or outcome
    return report


_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from ltcore.discovery.importing import _child; _child(sys.argv[2])"
)


def _import_in_child(offers: Sequence[Offer], timeout: float) -> list[str | None]:
    """The outcomes of the first offers: of all of them, or up to the one that the child process did not survive."""
    with tempfile.TemporaryDirectory(prefix="ltcore-") as folder:
        Path(folder, "offers").write_text(json.dumps([asdict(offer) for offer in offers]), encoding="utf-8")
        done = Path(folder, "outcomes")
        done.touch()
        path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
        null = subprocess.DEVNULL
        command = [sys.executable, "-P", "-c", _CHILD, path, folder]
        with subprocess.Popen(command, stdin=null, stdout=null, stderr=null) as child:
            size, late = 0, False
            while child.poll() is None:
                try:
                    child.wait(timeout)
                except subprocess.TimeoutExpired:
                    size, before = done.stat().st_size, size
                    if late := size == before:
                        child.kill()
        outcomes: list[str | None] = [json.loads(line) for line in done.read_text(encoding="utf-8").splitlines()]
    if len(outcomes) < len(offers):
        code = child.returncode
        how = f"crashed Python ({signal.strsignal(-code)})" if code < 0 else f"ended Python with exit code {code}"
        outcomes.append(f"importing it {f'takes more than {timeout:g} s' if late else how}")
    return outcomes


def _child(folder: str) -> None:
    """Import offers one after the other; an outcome is on disk before the next one begins."""
    for values in json.loads(Path(folder, "offers").read_text(encoding="utf-8")):
        offer = Offer(**values)
        outcome = None
        try:
            load(offer)
        except BaseException as error:
            # `load` says whose and what to do, which a list shows in columns of its own.
            cause = error.__cause__ if isinstance(error, PluginError) else error
            outcome = reason(cause) if cause else str(error).removeprefix(f"{offer}: ")
        with Path(folder, "outcomes").open("a", encoding="utf-8") as file:
            file.write(json.dumps(outcome) + "\n")
    os._exit(0)  # whatever threads and exit handlers the plugins have left behind
