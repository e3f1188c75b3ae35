"""The commands for authors of plugins: `new` and `check`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltcore.cli.parser import add_command
from ltcore.untrusted import printable


def new(
    name: str,
    hooks: Sequence[str] = (),
    out: Path | None = None,
    license: str = "apache-2.0",
    author: str | None = None,
    force: bool = False,
) -> None:
    """Write a plugin to start from: a distribution with code, tests, a recipe and a card, which works as it stands.

    Example: ltcore new mynoise --hook augment_features
    """
    from ltcore.new import write_plugin

    files = write_plugin(name, hooks, out, license, author, force)
    folder = files[0].parent
    for path in files:
        print(f"  {printable(path)}")
    recipe = next(path for path in files if path.parent.name == "recipes")
    method = next(path for path in files if path.name == "method.py")
    print(
        f"\nInstall it, and see that it works:\n\n    pip install -e {folder}\n    pytest {folder}\n    "
        f"ltcore check {method.parent.name.removeprefix('ltcore_')}\n    ltcore run {recipe}\n\n"
        f"Then change {method} and functional.py beside it."
    )


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
            print("\n".join(printable(line) for line in str(report).split("\n")), flush=True)
    if as_json:
        import json

        print(json.dumps([report.plain() for report in reports], indent=2))
    else:
        failed = [report.method for report in reports if not report.passed]
        every = f"{len(reports)} method{'s' * (len(reports) != 1)} checked"
        print(f"{every}, {len(failed)} failed: {', '.join(failed)}" if failed else f"{every}, all passed")
    if not all(report.passed for report in reports):
        sys.exit(1)


def add(commands: Any) -> None:
    """Add these commands to the command line."""
    command = add_command(commands, "new", new)
    command.add_argument("name", metavar="NAME", help="what recipes will call the method, such as my_noise")
    text = "a hook that it implements, by default augment_features; may be repeated: docs/hooks.md has them all"
    command.add_argument("--hook", action="append", dest="hooks", metavar="HOOK", help=text)
    command.add_argument("--out", type=Path, metavar="DIR", help="the folder to write; by default ltcore-NAME")
    command.add_argument("--license", choices=("apache-2.0", "mit", "bsd-3-clause"), help="by default apache-2.0")
    command.add_argument("--author", metavar="NAME", help="for pyproject.toml and the licence")
    command.flag("--force", "write over files that are there")
    command = add_command(commands, "check", check)
    text = "a method's name, or ./mine.py:Mine; by default those of all plugins"
    command.add_argument("names", metavar="NAME", nargs="*", help=text)
    text = "leave a check out, such as pairs, which takes longest; may be repeated"
    command.add_argument("--without", action="append", metavar="CHECK", help=text)
    command.json()
