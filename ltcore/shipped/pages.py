"""The documentation that comes with ltcore, the cards of installed plugins, and what is said of each hook."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from ltcore.discovery import catalogue
from ltcore.errors import RecipeError, nearest
from ltcore.listing.plugins import aligned
from ltcore.shipped import folder

_HOOK = re.compile(r"^## `(\w+)`\n", re.MULTILINE)
_KIND = re.compile(r"\*\*(\w+)\*\*")
_HEADING = re.compile(r"^## (.+)\n", re.MULTILINE)
_ENTRY = re.compile(r"^- \[[\w/]+\]\(([\w/]+)\.md\)", re.MULTILINE)


def page_rows() -> list[dict[str, Any]]:
    """One row for each page, in the order of ``docs/README.md``; then one for each installed plugin's card.

    A row has the page's ``name`` and ``title``. Its ``group`` is the heading of the index that the page stands under.
    """
    files = _files()
    pages = [
        {"name": name, "title": files[name].read_text("utf-8").partition("\n")[0].lstrip("# "), "group": group}
        for group, names in _index().items()
        for name in names
    ]
    cards = [
        {"name": name, "title": str(metadata(name)["Summary"] or ""), "group": "Cards of plugins"}
        for name in _distributions()
    ]
    return [*pages, *cards]


def render_pages(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text, each group below its name."""
    lines = aligned([(f"  {row['name']}", row["title"]) for row in rows]).splitlines()
    groups = [row["group"] for row in rows]
    text = [
        f"{group}\n{line}" if group != before else line
        for line, group, before in zip(lines, groups, [None, *groups[:-1]], strict=True)
    ]
    return "\n".join(text)


def page(name: str) -> str:
    """A page's text; of a plugin, or of a method that one offers, its card.

    Raises:
        RecipeError: there is no such page; the message names the nearest.
    """
    name = name.removesuffix(".md")
    files, distributions = _files(), _distributions()
    if name in files:
        return files[name].read_text("utf-8")
    methods = {offer.name: offer.distribution for offer in catalogue.offers() if offer.distribution in distributions}
    card = _card(methods.get(name, name)) if name in methods or name in distributions else None
    if card:
        return card
    near = nearest(name, [*files, *distributions, *methods])
    said = f"'{name}' brings no card" if name in methods or name in distributions else f"there is no page '{name}'"
    raise RecipeError(f"{said}{(card is None and near) or '.'} 'ltcore docs' lists all")


def hook_rows() -> list[dict[str, Any]]:
    """One row for each hook, in the order of a run: its name, its kind and the first sentence about it."""
    rows = []
    for name, text in _hooks().items():
        first, *paragraphs = text.split("\n\n")
        kind = _KIND.search(first)
        said = next(part for part in paragraphs if not re.match(r"(Hook|Argument) '", part))
        sentence = re.split(r"(?<=[.!?]) ", " ".join(said.split()))[0]
        rows.append({"name": name, "kind": kind[1] if kind else "", "summary": sentence.replace("`", "")})
    return rows


def render_hooks(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    return aligned([("HOOK", "KIND", "WHAT FOR"), *((row["name"], row["kind"], row["summary"]) for row in rows)])


def hook_section(name: str) -> str:
    """What ``docs/hooks.md`` says of a hook: kind, arguments, when it is called, an example.

    Raises:
        RecipeError: there is no such hook; the message names the nearest.
    """
    hooks = _hooks()
    if name not in hooks:
        raise RecipeError(f"there is no hook '{name}'{nearest(name, hooks) or '.'} 'ltcore hooks' lists all")
    return f"## `{name}`\n{hooks[name]}"


def _files() -> dict[str, Path]:
    """The pages by their names: ``recipes``, ``plugins/loss``."""
    docs = folder("docs")
    return {path.relative_to(docs).with_suffix("").as_posix(): path for path in sorted(docs.rglob("*.md"))}


def _index() -> Mapping[str, list[str]]:
    """Headings of the index, and the names of the pages below each."""
    parts = _HEADING.split(_files()["README"].read_text("utf-8"))[1:]
    return {title: _ENTRY.findall(text) for title, text in zip(parts[::2], parts[1::2], strict=True)}


def _distributions() -> list[str]:
    return sorted({offer.distribution for offer in catalogue.offers()} - {"ltcore", "?"})


def _card(distribution: str) -> str:
    """A distribution's README, which its metadata carry; empty where it has none."""
    try:
        return str(metadata(distribution).json.get("description", ""))
    except PackageNotFoundError:
        return ""


def _hooks() -> Mapping[str, str]:
    parts = _HOOK.split((folder("docs") / "hooks.md").read_text("utf-8"))[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))
