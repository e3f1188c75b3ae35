"""The commands for authors of plugins: `new` and `check`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltcore.cli.parser import add_command, whole
from ltcore.untrusted import printable


def new(
    name: str | None = None,
    hooks: Sequence[str] = (),
    kind: str | None = None,
    methods: Sequence[str] = (),
    taken: Sequence[str] = (),
    out: Path | None = None,
    license: str = "apache-2.0",
    author: str | None = None,
    force: bool = False,
) -> None:
    """Write a plugin to start from: a distribution with code, tests, a recipe and a card, which works as it stands.

    Kinds: loss, margin, class-weights, sample-weights, loss-term, tap-loss, trained-module, feature-bank, augmentation,
    mixing, balancing, sampler, extra-rows, gradients, constraint, classifier, calibration, adapter, backbone, data-set.

    Example: ltcore new mynoise --kind augmentation
    """
    from ltcore.new import write_plugin

    files = write_plugin(name, hooks, out, license, author, force, kind, methods, taken)
    folder = files[0].parent
    for path in files:
        print(f"  {printable(path)}")
    modules = [path for path in files if path.name == "method.py"]
    checked = " ".join(path.parent.name.removeprefix("ltcore_") for path in modules)
    there = shlex.quote(str(folder))
    lines = [f"pip install -e {shlex.quote(f'{folder}[dev]')}", f"pytest {there}", f"ltcore check {checked}"]
    lines += [shlex.join(["ltcore", "run", str(path)]) for path in files if path.parent.name == "recipes"]
    if taken:
        lines.insert(1, f"ruff check --fix {there} && ruff format {there}")
    print("\nInstall it, and see that it works:\n\n" + "".join(f"    {line}\n" for line in lines))
    if taken:
        print(f"Recipes that name the file then say 'use: NAME'; NAME is {' or '.join(checked.split())}.")
    else:
        print(f"Then change {modules[0]} and functional.py beside it.")


def check(
    names: Sequence[str] = (), without: Sequence[str] = (), jobs: int | None = None, as_json: bool = False
) -> None:
    """Train installed methods on a few dozen made-up images, and see that they keep to what ltcore asks of them.

    Without NAME, every method of the installed plugins is checked; core's own data sets and its timm backbone only
    where they are named. A line a check says what was tried; a check that failed, what to change. The exit code is 1
    where one has failed.

    Example: ltcore check tau_norm
    """
    from ltcore.testing.installed import check_installed

    reports = []
    for report in check_installed(names, without, jobs):
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
    text = "what recipes will call the method, such as my_noise; of several methods, what the distribution is called"
    command.add_argument("name", metavar="NAME", nargs="?", default=None, help=text)
    text = "start from a method of this kind, in place of hooks; the list stands above"
    command.add_argument("--kind", metavar="KIND", help=text)
    text = "a hook that it implements, by default augment_features; may be repeated: docs/hooks.md has them all"
    command.add_argument("--hook", action="append", dest="hooks", metavar="HOOK", help=text)
    text = "one of several methods, as NAME=KIND or NAME=HOOK+HOOK; may be repeated"
    command.add_argument("--method", action="append", dest="methods", metavar="NAME=KIND", help=text)
    text = "take over a method that was tried in one file, such as ./mine.py:Mine; may be repeated"
    command.add_argument("--from", action="append", dest="taken", metavar="FILE:CLASS", help=text)
    command.add_argument("--out", type=Path, metavar="DIR", help="the folder to write; by default ltcore-NAME")
    command.add_argument("--license", choices=("apache-2.0", "mit", "bsd-3-clause"), help="by default apache-2.0")
    command.add_argument("--author", metavar="NAME", help="for pyproject.toml and the licence")
    command.flag("--force", "write over files that are there")
    command = add_command(commands, "check", check)
    text = "a method's name, or ./mine.py:Mine; by default those of all plugins"
    command.add_argument("names", metavar="NAME", nargs="*", help=text)
    text = "leave a check out, such as pairs, which takes longest; may be repeated"
    command.add_argument("--without", action="append", metavar="CHECK", help=text)
    text = "check in N processes; by default in one per core, or in one where there is a GPU"
    command.add_argument("--jobs", type=whole, metavar="N", help=text)
    command.json()
