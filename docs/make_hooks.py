"""Writes ``hooks.md``, and the run's pseudocode at the head of ``architecture.md``.

The page has the hooks' specifications with their docstrings, examples, and what each version has changed.

python docs/make_hooks.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from ltcore.contract import hookspecs, interface

HERE = Path(__file__).parent
HEAD = """# Hooks

This page has every hook, in the order in which a run calls them. [architecture.md](architecture.md) begins with the
loop, which shows when each is called. Its [table of kinds](architecture.md#kinds) says what the kinds mean.
`python docs/make_hooks.py` writes this page from `ltcore/contract/hookspecs.py`, `ltcore/contract/interface.py` and
`docs/hook_examples.py`.

An implementation is a method of an `ltcore.Method`, marked with `@hookimpl`. It takes those of the hook's arguments
that it needs, by name; a misspelled hook or argument is an error. One class may implement several hooks. A data set
under `data.use` answers only `build_data`, and a backbone under `backbone.use` only `build_backbone`. The methods under
`backbone.adapt` answer `adapt_backbone`, and those under `calibrate` answer `post_calibrate`.

N is the number of rows, C the number of classes, D the features' width, and [H, W] a map's size. Tensors are on
`context.device`, unless the text says otherwise. `tests/test_docs.py` runs each example in a small recipe. The examples
share these imports:

"""
VERSIONS = """## The interface's version

This core has hook interface **{version}**. A method says which one it was written for: `interface = "{version}"` in its
class. A minor version adds hooks or arguments. A major version changes or removes some. So:

- A method for this version, or an older one of the same major version, works.
- A method for an older major version works as long as nothing that it uses was changed. Otherwise it is refused.
- Deprecated hooks and arguments still work. One warning for each distribution says which they are, and what to use
  instead.
- A method for a newer version is refused: upgrade ltcore, or install an older version of the plugin.

{table}
"""


def markdown(docstring: str) -> str:
    """A docstring's text with Markdown's code spans."""
    return re.sub(r"``(.+?)``", r"`\1`", docstring, flags=re.DOTALL)


def examples() -> dict[str, str]:
    """The source of each example, and of ``imports``."""
    parts = re.split(r"^# -- (\w+)\n", (HERE / "hook_examples.py").read_text(), flags=re.MULTILINE)[1:]
    return {name: source.strip() for name, source in zip(parts[::2], parts[1::2], strict=True)}


def code(source: str) -> str:
    """A block of Python."""
    return f"```python\n{source}\n```\n"


def versions() -> str:
    """The head's section on versions, with a row for each thing that was added, deprecated or changed."""
    rows = [
        *(f"| {version} | {interface.spoken(name)} was added | |" for name, version in interface.ADDED.items()),
        *(
            f"| {old.since} | {interface.spoken(name)} is deprecated, and goes with {old.removed} | {old.instead} |"
            for name, old in interface.DEPRECATED.items()
        ),
        *(
            f"| {change.version} | {interface.spoken(name)} was changed | {change.instead} |"
            for name, change in interface.CHANGED.items()
        ),
    ]
    table = "Nothing was added, deprecated or changed since the first version."
    if rows:
        table = "\n".join(["| version | what | instead |", "| --- | --- | --- |", *rows])
    return VERSIONS.format(version=interface.INTERFACE, table=table)


def section(name: str, example: str) -> str:
    """A hook's section: kind, signature and version; what it is for and when it is called; its example."""
    function = getattr(hookspecs, name)
    signature = name + str(inspect.signature(function)).replace("'", "")
    changes = [
        f"{what[0].upper()}{what[1:]}."
        for key in (name, *(f"{name}.{argument}" for argument in inspect.signature(function).parameters))
        for what in _changes(key, name)
    ]
    first = f"**{hookspecs.HOOKS[name].kind}** · `{signature}` · since {interface.since(name)}"
    text = markdown(inspect.getdoc(function) or "")
    return "\n\n".join([f"## `{name}`", first, *changes, text, code(example)])


def _changes(key: str, name: str) -> list[str]:
    found = []
    if key != name and interface.since(key) != interface.since(name):
        found.append(f"{interface.spoken(key)} is there since {interface.since(key)}")
    if key in interface.DEPRECATED:
        old = interface.DEPRECATED[key]
        found.append(
            f"{interface.spoken(key)} is deprecated since {old.since} and goes with {old.removed}: {old.instead}"
        )
    if key in interface.CHANGED:
        change = interface.CHANGED[key]
        found.append(f"{interface.spoken(key)} was changed in {change.version}: {change.instead}")
    return found


def page() -> str:
    """The whole page."""
    found = examples()
    sections = [section(name, found[name]) for name in hookspecs.HOOKS]
    return "\n".join([HEAD + code(found["imports"]), versions(), *sections])


def pseudocode() -> str:
    """The block of the specifications' docstring that shows a run with every hook where it is called."""
    lines = inspect.getdoc(hookspecs).splitlines()
    first, last = (index for index, line in enumerate(lines) if line.startswith("    ") and _at_an_edge(lines, index))
    return "".join(f"{line.removeprefix('    ')}\n" for line in lines[first : last + 1])


def _at_an_edge(lines: list[str], index: int) -> bool:
    return not lines[index - 1] or not lines[index + 1]


def architecture(text: str) -> str:
    """``architecture.md`` with the pseudocode in its first block."""
    head, _, rest = text.partition("```text\n")
    return f"{head}```text\n{pseudocode()}```{rest.partition('```')[2]}"


if __name__ == "__main__":
    (HERE / "hooks.md").write_text(page())
    path = HERE / "architecture.md"
    path.write_text(architecture(path.read_text()))
