"""Errors that a user can cause, each one message: what, where, whose, and what to do.

The command line prints the message and ends with the class's exit code; a traceback is shown with ``--debug`` only.
"""

from collections.abc import Iterable
from typing import Self


class LtcoreError(Exception):
    """Base of every error whose message is meant for the user as it stands.

    A class of a plugin may have a constructor and attributes of its own; its message is what it hands to
    ``super().__init__``. So whoever knows more about an error adds to its message and raises the same object again::

        except LtcoreError as error:
            error.within("data: ")
            raise
    """

    exit_code = 1

    def within(self, before: str = "", after: str = "") -> Self:
        """This error, its message put between `before` and `after`; all else of it stays."""
        return self.saying(f"{before}{self}{after}")

    def saying(self, message: str) -> Self:
        """This error with another message; its class, attributes, exit code and traceback stay."""
        self.args = (message,)
        return self


class RecipeError(LtcoreError):
    """The recipe, the command line or the combination of methods is wrong; nothing was trained. Exit code 2."""

    exit_code = 2


class DataError(LtcoreError):
    """The data is missing, unreadable or does not suit the recipe. Exit code 2."""

    exit_code = 2


class PluginError(LtcoreError):
    """A plugin is missing or fails to import (exit code 2)."""

    exit_code = 2


class RunError(LtcoreError):
    """The run itself failed: a loss that is not finite, a method that raised, no memory left. Exit code 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'focal'?"`` for the known name closest to `name`, or an empty string."""
    from difflib import get_close_matches  # here, since every start imports this file

    matches = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def listed(names: Iterable[str]) -> str:
    """Names as ``'a', 'b'``, in the given order; ``none`` where there are none."""
    return ", ".join(f"'{name}'" for name in names) or "none"
