"""The commands for authors of plugins: `check`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from ltcore.cli.parser import add_command


def check(names: Sequence[str] = (), without: Sequence[str] = (), as_json: bool = False) -> None:
    """Train installed methods on a few dozen made-up images, and see that they keep to what ltcore asks of them.

    Without NAME, every method of the installed plugins is checked; core's own data sets and its timm backbone only
    where they are named. A line a check says what was tried; a check that failed, what to change. The exit code is 1
    where one has failed.

    Example: ltcore check tau_norm
    """
    from ltcore.testing.installed import check_installed

    reports = []
    for report in check_installed(names, without):
        reports.append(report)
        if not as_json:
            print(report, flush=True)
    if as_json:
        print(json.dumps([report.plain() for report in reports], indent=2))
    else:
        failed = [report.method for report in reports if not report.passed]
        every = f"{len(reports)} method{'s' * (len(reports) != 1)} checked"
        print(f"{every}, {len(failed)} failed: {', '.join(failed)}" if failed else f"{every}, all passed")
    if not all(report.passed for report in reports):
        sys.exit(1)


def add(commands: Any) -> None:
    """Add these commands to the command line."""
    command = add_command(commands, "check", check)
    command.add_argument("names", metavar="NAME", nargs="*", help="a method's name; by default those of all plugins")
    text = "leave a check out, such as pairs, which takes longest; may be repeated"
    command.add_argument("--without", action="append", metavar="CHECK", help=text)
    command.json()
