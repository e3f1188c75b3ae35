"""What methods say of an epoch (`ltcore.Method.logged`), checked and made JSON-able for ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ltcore.errors import PluginError, RunError

if TYPE_CHECKING:
    from ltcore.discovery.binding import Entry


def logged_values(entries: Iterable[Entry], num_classes: int) -> dict[str, dict[str, Any]]:
    """Ask methods what a reader should see of the epoch.

    Args:
        entries: the methods of the stage.
        num_classes: C.

    Returns:
        For each method with something to say its names and values: a number, or a list of C. What is not finite is
        None, and a number has six digits.

    Raises:
        PluginError: a value is neither a number nor a value a class.
        RunError: a method fails.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        try:
            values = dict(entry.method.logged())
        except Exception as error:
            raise RunError(
                f"{entry.whose} failed in logged: {type(error).__name__}: {error}. Run with --debug for the traceback"
            ) from error
        for name, value in values.items():
            if not isinstance(value, Tensor) or value.shape not in ((), (num_classes,)):
                raise PluginError(
                    f"{entry.whose}: '{name}' of logged is neither a number nor one for each of the {num_classes} "
                    "classes; tell its author"
                )
            found.setdefault(entry.key, {})[name] = _plain(value.detach().double().cpu().tolist())
    return found


def _plain(value: float | list[float]) -> Any:
    """JSON has nothing that is not finite, and six digits are more than a picture shows."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return float(f"{value:.6g}") if math.isfinite(value) else None
