"""The commands that print documentation: `docs` and `hooks`."""

from __future__ import annotations

from typing import Any

from ltcore.cli.parser import add_command, show, show_page


def docs(name: str | None = None) -> None:
    """Print a page of the documentation, or an installed plugin's card; without PAGE list them. Needs no network.

    Example: ltcore docs recipes
    """
    from ltcore.shipped import pages

    if name is None:
        show(pages.page_rows(), pages.render_pages, False)
    else:
        show_page(pages.page(name))


def hooks(name: str | None = None) -> None:
    """Print what a hook is for, its arguments, when it is called and an example; without NAME list the hooks.

    Example: ltcore hooks augment_features
    """
    from ltcore.shipped import pages

    if name is None:
        show(pages.hook_rows(), pages.render_hooks, False)
    else:
        show_page(pages.hook_section(name))


def add(commands: Any) -> None:
    """Add these commands to the command line."""
    command = add_command(commands, "docs", docs)
    text = "a page, as the list names it, or a method's name for its plugin's card"
    command.add_argument("name", metavar="PAGE", nargs="?", default=None, help=text)
    command = add_command(commands, "hooks", hooks)
    command.add_argument("name", metavar="NAME", nargs="?", default=None, help="a hook")
