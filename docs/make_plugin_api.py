"""Writes ``plugin_api.md``: all that a plugin may import, from the two tables of names and the docstrings.

python docs/make_plugin_api.py
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import ltcore
import ltcore.testing

HERE = Path(__file__).parent
HEAD = """# What a plugin imports

A plugin imports from `ltcore` itself, and its tests from `ltcore.testing` too. It imports nothing else, because
a module below `ltcore` may move or change in any version. `tests/test_public.py` checks this for our own plugins.
[hooks.md](hooks.md) has the hooks that a method implements, and [write_a_plugin.md](write_a_plugin.md) says how to
write one.

A name is imported only when it is used, so `import ltcore` needs no torch. `python docs/make_plugin_api.py` writes this
page from `ltcore/__init__.py` and `ltcore/testing/__init__.py`. Each line is the first of a docstring.
`help(ltcore.NAME)` has the rest: shapes, units and errors.
"""
#: Title of a part -> the modules whose names it has.
PARTS = {
    "A method": [
        "contract.method",
        "contract.hook",
        "contract.context",
        "contract.records",
        "contract.reported",
        "contract.suited",
        "contract.objective",
        "contract.recipe",
    ],
    "Images": ["contract.images"],
    "Networks": ["contract.backbone", "contract.classifier", "contract.experts", "contract.model"],
    "Samplers and class distributions": ["contract.samplers"],
    "Statistics of classes": ["contract.statistics"],
    "Data sets": ["contract.splits", "contract.imbalance", "contract.facts"],
    "Errors": ["errors"],
    "Runs": ["runs.saved"],
}
#: What has no docstring of its own.
SAID = {
    "hookimpl": "Marks a method's function as the implementation of the hook of the same name.",
    "__version__": "Version of ltcore.",
}


def first_line(docstring: str) -> str:
    """A docstring's first paragraph as a cell of a table."""
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(docstring.split("\n\n")[0].split())).replace("|", "\\|")


def line(name: str, value: Any) -> str:
    """A row: the name, a function with its arguments, and the first line of the docstring."""
    arguments = f"({', '.join(inspect.signature(value).parameters)})" if inspect.isfunction(value) else ""
    return f"| `{name}{arguments}` | {first_line(SAID.get(name) or inspect.getdoc(value) or '')} |"


def table(title: str, names: list[str], package: Any) -> str:
    """A part of the page."""
    rows = [line(name, getattr(package, name)) for name in names]
    return "\n".join([f"## {title}\n", "| name | what |", "| --- | --- |", *rows]) + "\n"


def fixtures() -> str:
    """The part on pytest's fixtures, read from their source: pytest keeps the functions to itself."""
    source = Path(ltcore.testing.__file__).with_name("plugin.py").read_text()
    said = {node.name: ast.get_docstring(node) or "" for node in ast.parse(source).body if hasattr(node, "args")}
    rows = [f"| `{name}` | {first_line(text)} |" for name, text in said.items()]
    return (
        "\n".join(["Fixtures of pytest, wherever ltcore is installed:\n", "| name | what |", "| --- | --- |", *rows])
        + "\n"
    )


def page() -> str:
    """The whole page.

    Raises:
        ValueError: a public name's module is in no part.
    """
    homes = ltcore._HOMES
    if missing := set(homes.values()) - {module for modules in PARTS.values() for module in modules}:
        raise ValueError(f"name these modules in PARTS: {sorted(missing)}")
    parts = [
        table(title, [name for module in modules for name in homes if homes[name] == module], ltcore)
        for title, modules in PARTS.items()
    ]
    parts[-1] += line("__version__", ltcore.__version__) + "\n"
    testing = table("`ltcore.testing`", list(ltcore.testing._HOMES), ltcore.testing)
    return "\n".join([HEAD, *parts, testing, fixtures()])


if __name__ == "__main__":
    (HERE / "plugin_api.md").write_text(page())
