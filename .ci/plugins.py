#!/usr/bin/env python3
"""What the repository says of its plugins elsewhere than in their folders, derived from their pyproject.toml files.

    python .ci/plugins.py [--write] [ROOT]

The derived text stands between two marks, ``plugins: written by .ci/plugins.py`` and ``end of plugins``. Without
``--write``, each file whose text is out of date is a line, and the exit code is 1 where there is one. Needs the
standard library only.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

BEGIN, END = "plugins: written by .ci/plugins.py", "end of plugins"
WRITE = "run: python .ci/plugins.py --write"


def found(root: Path) -> dict[str, tuple[str, list[str]]]:
    """By folder under ``plugins/``: the distribution, and the names of its methods."""
    read = {}
    for path in sorted(root.glob("plugins/*/pyproject.toml")):
        project = tomllib.loads(path.read_text())["project"]
        methods = project.get("entry-points", {}).get("ltcore.plugins", {})
        read[path.parent.name] = (project["name"], sorted(methods))
    return read


def derived(root: Path) -> dict[str, list[str]]:
    """By file: the texts between its pairs of marks, in their order."""
    plugins = found(root)
    names = sorted(name for name, _ in plugins.values())
    ours = sorted((method, name) for name, methods in plugins.values() for method in methods)
    folders = " ".join(f"-e plugins/{folder}" for folder in sorted(plugins))
    command = textwrap.fill(
        f"pip install -e . {folders}", 107, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
    )
    # An option and its folder stay on one line.
    command = re.sub(r" -e\n +", "\n    -e ", command).replace("\n", " \\\n")
    return {
        "pyproject.toml": [
            "".join(f'  "{name}",\n' for name in names),
            "".join(f"{name} = {{ workspace = true }}\n" for name in names),
        ],
        "ltcore/discovery/catalogue.py": ["".join(f'    "{method}": "{name}",\n' for method, name in ours)],
        "CONTRIBUTING.md": [f"```bash\n{command}\npip install --group dev   # pip 25.1 or newer\n```\n"],
    }


def rewritten(text: str, parts: list[str]) -> str:
    """A file's text with its derived parts.

    Raises:
        ValueError: it has another number of pairs of marks.
    """
    pattern = re.compile(rf"(?m)(^.*{re.escape(BEGIN)}.*\n)((?:.*\n)*?)(^.*{re.escape(END)}.*$)")
    if len(pattern.findall(text)) != len(parts):
        raise ValueError(f"there should be {len(parts)} times '{BEGIN}' and '{END}'")
    rest = iter(parts)
    return pattern.sub(lambda match: match[1] + next(rest) + match[3], text)


def stale(root: Path, write: bool = False) -> Iterator[str]:
    """What is out of date, as ``FILE: what to do``; written anew where that is asked for."""
    for name, parts in derived(root).items():
        path = root / name
        text = path.read_text()
        try:
            wanted = rewritten(text, parts)
        except ValueError as error:
            yield f"{name}: {error}"
            continue
        if wanted != text and write:
            path.write_text(wanted)
        elif wanted != text:
            yield f"{name}: the list of plugins is not that of plugins/*; {WRITE}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the files that are out of date")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parent.parent)
    asked = parser.parse_args()
    lines = list(stale(asked.root, asked.write))
    print("\n".join(lines) or "what is said of the plugins is what their folders say")
    sys.exit(bool(lines))
