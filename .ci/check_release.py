#!/usr/bin/env python3
"""Checks before publishing that what our distributions say of themselves and of each other agrees.

    python .ci/check_release.py [ROOT]

Each mistake is a line with its file; the exit code is 1 where there is one. Needs the standard library only.
"""

from __future__ import annotations

import ast
import re
import runpy
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def mistakes(root: Path) -> Iterator[str]:
    """What does not agree, as ``FILE: what, and what it should be``."""
    core = _project(root / "pyproject.toml")
    version = core["version"]
    stated = _assigned(root / "ltcore" / "contract" / "interface.py", "__version__")
    if stated != version:
        yield f"ltcore/contract/interface.py: __version__ is {stated}, and pyproject.toml says {version}"
    yield from _changelog(root, version)
    cited = re.search(r"^version: (.+)$", (root / "CITATION.cff").read_text(), re.MULTILINE)
    if cited is None or cited[1].strip("\"'") != version:
        yield f"CITATION.cff: version should be {version}"

    needed = f"ltcore{version_range(version)}"
    offered: dict[str, str] = {}
    for path in sorted(root.glob("plugins/*/pyproject.toml")):
        where, project = path.relative_to(root), _project(path)
        name = project["name"]
        if project["version"] != version:
            yield f"{where}: version is {project['version']}, and core's is {version}; they are published together"
        ranges = [entry for entry in project["dependencies"] if re.match(r"ltcore\b(?!-)", entry)]
        if ranges != [needed]:
            yield f"{where}: dependencies should have '{needed}', not {ranges or 'no ltcore'}"
        if name != f"ltcore-{path.parent.name.replace('_', '-')}":
            yield f"{where}: the distribution in plugins/{path.parent.name} is called {name}"
        for method, place in project.get("entry-points", {}).get("ltcore.plugins", {}).items():
            package = place.partition(":")[0].partition(".")[0]
            if not (path.parent / "src" / package / "py.typed").is_file():
                yield f"{where}: entry point {method}: there is no src/{package} with py.typed"
            if method in offered:
                yield f"{where}: method '{method}' is offered by {offered[method]}, too"
            offered[method] = name
    yield from runpy.run_path(str(Path(__file__).with_name("plugins.py")))["stale"](root)


def version_range(version: str) -> str:
    """The versions of core that plugins of the same version work with, as `ltcore new` writes them."""
    major, minor = version.split(".")[:2]
    return f">=0.{minor},<0.{int(minor) + 1}" if major == "0" else f">={major}.{minor},<{int(major) + 1}"


def _changelog(root: Path, version: str) -> Iterator[str]:
    text = (root / "CHANGELOG.md").read_text()
    found = re.search(rf"^## {re.escape(version)}\b.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        yield f"CHANGELOG.md: there is no entry for {version}"
    elif "### Hooks" not in found[0]:
        yield f"CHANGELOG.md: the entry for {version} has no part 'Hooks'; say there what authors of plugins must know"


def _project(path: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return project


def _assigned(path: Path, name: str) -> Any:
    """The literal that a module assigns to a name."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name and isinstance(node, ast.Assign | ast.AnnAssign):
            return ast.literal_eval(node.value) if node.value else None
    return None


if __name__ == "__main__":
    found = list(mistakes(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent))
    print("\n".join(found) or "versions, ranges, entry points and changelog agree")
    sys.exit(bool(found))
