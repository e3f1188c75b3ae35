"""Whether a run goes on with what it was begun with: its data and its environment; and the record of both.

Another data set or another environment under a trained half gives figures of neither. So each is refused, unless the
user says that it is meant; then it is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ltcore import ranks
from ltcore.contract.result import EnvironmentRecord
from ltcore.data.fingerprint import Fingerprint
from ltcore.errors import DataError, RecipeError, RunError
from ltcore.files.environment import differences, environment
from ltcore.files.reading import read_environments
from ltcore.files.run_directory import RunDirectory
from ltcore.files.writing import write_atomically

if TYPE_CHECKING:
    import torch

    from ltcore.plan.plan import Plan


@dataclass(frozen=True)
class Allowed:
    """What the user says may differ from what a run was begun with.

    Attributes:
        data: ``--data-changed``.
        environment: ``--environment-changed``.
    """

    data: bool = False
    environment: bool = False


def environment_of(plan: Plan, device: torch.device) -> EnvironmentRecord:
    """The environment of this process, with the code of the recipe's methods; see `ltcore.files.environment`."""
    entries = [*plan.entries.values(), plan.data, plan.backbone]
    methods = {(entry.offer.distribution, type(entry.method).__module__) for entry in entries}
    methods |= {(entry.offer.distribution, entry.offer.module) for entry in entries if not entry.offer.is_packaged}
    # Each of several processes has a card of its own, whose number says nothing.
    return environment(str(device) if ranks.size() == 1 else device.type, methods)


def begin(
    directory: RunDirectory, data: Fingerprint, now: EnvironmentRecord, allowed: Allowed, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Refuse a run that would not go on with what it was begun with, and write down what it goes on with.

    Args:
        directory: the run's, new or begun.
        data: the fingerprint of the data that was read.
        now: the environment of this process.
        allowed: what may differ.
        tell: is told what differs.

    Returns:
        For ``result.json``: ``data_fingerprint``, and where something has changed ``data_changed`` and
        ``environments``.

    Raises:
        DataError: the data has changed.
        RecipeError: the environment has.
        RunError: what the run remembers of them is damaged, or another version of ltcore wrote it.
    """
    entries: list[EnvironmentRecord] = []
    changes: list[str] = []
    matters: list[str] = []
    others: list[str] = []
    begun = bool(directory.checkpoints()) or (directory.path / "select").exists()
    if begun:
        entries = _environments(directory)
        changes = data_changes(directory, data)
        if changes and not allowed.data:
            raise DataError(
                f"--resume: {directory.path} cannot go on with the data it was begun on: {'; '.join(changes)}. Bring "
                "it back as it was, or begin the run anew without --resume; with --data-changed it goes on, and its "
                "result says so"
            )
        matters, others = differences(entries[-1], now)
        if matters and not allowed.environment:
            raise RecipeError(
                f"--resume: {directory.path} was trained up to here in another environment, which changes figures: "
                f"{'; '.join(matters)}. Bring it back as it was, or begin the run anew without --resume; with "
                "--environment-changed it goes on, and its result says so"
            )
    for kind, texts in (("data", changes), ("environment", matters + others)):
        for text in texts:
            tell(f"warning: since the run was begun, its {kind} has changed: {text}")
    if not entries or changes or matters or others:
        entry: EnvironmentRecord = {"began": f"{datetime.now():%Y-%m-%dT%H:%M:%S}", **now}
        if changes:
            entry["data_changed"] = changes
        entries = [*entries, entry]
        directory.write_json("environment.json", entries)
    if changes or not (begun and directory.data.exists()):
        write_atomically(directory.data, data.to_bytes())
    about: dict[str, Any] = {"data_fingerprint": data.digests()}
    if changed := [text for entry in entries for text in entry.get("data_changed", ())]:
        about["data_changed"] = changed
    if len(entries) > 1:
        about["environments"] = entries
    return about


def environment_changes(directory: RunDirectory, now: EnvironmentRecord) -> list[str]:
    """What differs from the environment in which a finished run ended, in words.

    Raises:
        RunError: what the run remembers of it is damaged.
    """
    matters, others = differences(_environments(directory)[-1], now)
    return matters + others


def data_changes(directory: RunDirectory, now: Fingerprint) -> list[str]:
    """What of the data differs from what a run was begun on, in words; empty where nothing does."""
    if not directory.data.exists():
        return [f"the run keeps no fingerprint of its data ({directory.data.name}), as none of an earlier version does"]
    try:
        before = Fingerprint.from_bytes(directory.data.read_bytes())
    except (OSError, ValueError) as error:
        return [f"{directory.data} is damaged ({error}), so that it cannot be compared"]
    return before.differences(now)


def _environments(directory: RunDirectory) -> list[EnvironmentRecord]:
    """The entries of ``environment.json``.

    Raises:
        RunError: it is missing, damaged, or of another version of ltcore.
    """
    path = directory.path / "environment.json"
    if entries := read_environments(path):
        return entries
    raise RunError(
        f"{path} does not say what the run was trained with: an earlier version of ltcore wrote it. Begin the run "
        "anew, without --resume"
    )
