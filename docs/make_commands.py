"""Writes ``commands.md``: every command with its arguments, from the command line's own help.

python docs/make_commands.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from ltcore.cli import command_line

HERE = Path(__file__).parent
HEAD = """# Commands

This page has what `ltcore --help` and each command's `--help` say. `python docs/make_commands.py` writes it.
Every command takes `--debug`, which shows the traceback of an error. The exit code is 0 if all went well, and 1 if the
run or the machine failed. It is 2 if the recipe, the command line or the data is wrong. If the command was stopped, it
is 130, or 128 plus the signal's number.

"""


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Each command below a parser, in the order of the help: its words, its line in the list, and its parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            lines = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                yield command.prog, lines[name], command
                yield from commands(command)


def spelled(action: argparse.Action) -> str:
    """How an argument is written: ``RECIPE``, ``[DIR]``, ``--seed SEED``, ``PATH ...``."""
    many = action.nargs in ("*", "+")
    count = 1 if many or action.nargs in (None, "?") else int(action.nargs)
    choices = f"{{{','.join(map(str, action.choices))}}}" if action.choices else None
    metavar = action.metavar or choices or action.dest.upper()
    value = " ".join([str(metavar)] * count + ["..."] * many)
    if action.option_strings:
        return f"{', '.join(action.option_strings)} {value}".strip()
    return f"[{value}]" if action.nargs in ("*", "?") else value


def section(words: str, parser: argparse.ArgumentParser) -> str:
    """A command's section: what it does, an example, its arguments."""
    text, _, example = (parser.description or "").partition("\nExample: ")
    parts = [f"## {words}", text.strip(), *([f"    {example.strip()}"] if example else [])]
    rows = [
        f"| `{spelled(action)}` | {(action.help or '').replace('|', chr(92) + '|')} |"
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction) and action.dest != "debug"
    ]
    if rows:
        parts.append("\n".join(["| argument | meaning |", "| --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def page() -> str:
    """The whole page."""
    found = list(commands(command_line()))
    index = "\n".join(f"- [`{words}`](#{words.replace(' ', '-')}): {line}" for words, line, _ in found)
    return HEAD + index + "\n\n" + "\n".join(section(words, parser) for words, _, parser in found)


if __name__ == "__main__":
    (HERE / "commands.md").write_text(page())
