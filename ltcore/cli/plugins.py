"""The commands about plugins: `plugins`."""

from __future__ import annotations

from typing import Any

from ltcore.cli.parser import add_command, show


def plugins(as_json: bool = False, really_import: bool = False) -> None:
    """List the installed methods with their hooks, and those that cannot be imported. Nothing is imported.

    Example: ltcore plugins
    """
    from ltcore.listing.plugins import plugin_rows, render_plugins

    show(plugin_rows(really_import), render_plugins, as_json)


def show_plugin(name: str, as_json: bool = False, really_import: bool = False) -> None:
    """Show a method's options, hooks and needs.

    Example: ltcore plugins show ofa
    """
    from ltcore.listing.plugins import plugin_card, render_card  # which imports the plugin, whether asked to or not

    show(plugin_card(name), render_card, as_json)


def add(commands: Any) -> None:
    """Add these commands to the command line."""
    command = add_command(commands, "plugins", plugins)
    command.json()
    command.flag("--import", "import each one in another process, instead of reading its source", "really_import")
    nested = command.add_subparsers(title="commands", metavar="COMMAND")
    command = add_command(nested, "show", show_plugin)
    command.add_argument("name", metavar="NAME", help="a method's name, or ./mine.py:Mine")
    command.json()
