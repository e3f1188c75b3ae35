"""What ``ltcore plugins`` and ``ltcore data`` print."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.discovery import catalogue, static
from ltcore.errors import LtcoreError

if TYPE_CHECKING:
    from ltcore.data.prepare import PreparedData

#: A recipe of which only the data is looked at.
_DATA_ONLY = "data: {{use: {}}}\nbackbone: {{use: timm}}\nstages: [{{name: none, epochs: 1, optimizer: {{lr: 1}}}}]\n"


def plugin_rows(really_import: bool = False) -> list[dict[str, Any]]:
    """One row for each installed method: name, distribution, version, interface, hooks, and what is wrong, if anything.

    Args:
        really_import: find out what is broken by importing each in a child process, not by reading its source only.
    """
    offers = catalogue.offers()
    names = [offer.name for offer in offers]
    imported: dict[str, str | None] = {}
    if really_import:
        from ltcore.discovery.importing import import_report  # a plain listing does not need what child processes take

        imported = import_report(offers)
    rows = []
    for offer in offers:
        found = static.inspect(offer)
        problem = found.problem or imported.get(offer.name)
        if names.count(offer.name) > 1:
            problem = problem or f"two distributions offer the name '{offer.name}'; uninstall one"
        rows.append(
            {
                "name": offer.name,
                "distribution": offer.distribution,
                "version": offer.version,
                "interface": found.interface,
                "hooks": list(found.hooks),
                "broken": problem,
            }
        )
    return rows


def render_plugins(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    table = [("NAME", "DISTRIBUTION", "VERSION", "INTERFACE", "HOOKS")]
    table += [
        (
            row["name"],
            row["distribution"],
            row["version"],
            row["interface"] or "?",
            f"BROKEN: {row['broken']}" if row["broken"] else ", ".join(row["hooks"]),
        )
        for row in rows
    ]
    return aligned(table)


def aligned(table: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells as lines with columns of one width; the last column is as wide as it is."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in table
    )


def plugin_card(name: str) -> dict[str, Any]:
    """Everything about one method; imports it.

    Raises:
        PluginError: it is not installed, or fails to import.
    """
    from ltcore.discovery.binding import Entry, implementations

    offer = catalogue.asked(name)
    kind = catalogue.load(offer)
    schema = kind.Options.model_json_schema()
    required = schema.get("required", [])
    try:
        method = kind()  # the defaults; a method whose options are required is described from its class
        answers = [hook for hook, found in implementations([Entry(name, offer, method)]).items() if found]
        needs, terms = sorted(method.requires), list(method.auxiliary)
    except Exception:
        answers = list(static.inspect(offer).hooks)
        # Read from the class, where they may be properties that only an instance can answer.
        needs, terms = (list(v) if isinstance(v, frozenset | set | tuple) else [] for v in _of_class(kind))
    return {
        "name": name,
        "distribution": offer.distribution,
        "version": offer.version,
        "interface": kind.interface,
        "summary": (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " "),
        "hooks": answers,
        "requires": needs,
        "auxiliary": terms,
        "options": {
            option: {
                "type": _type_of(content),
                "default": "required" if option in required else content.get("default"),
                "description": " ".join(content.get("description", "").split()),
            }
            for option, content in schema.get("properties", {}).items()
        },
    }


def _of_class(kind: type) -> tuple[Any, Any]:
    return getattr(kind, "requires", ()), getattr(kind, "auxiliary", ())


def _type_of(content: dict[str, Any]) -> str:
    if "anyOf" in content:
        return " or ".join(_type_of(part) for part in content["anyOf"])
    if "enum" in content:
        return " | ".join(str(value) for value in content["enum"])
    if content.get("type") == "array":
        return f"list of {_type_of(content.get('items', {}))}"
    return str(content.get("const", content.get("type", content.get("$ref", "any").rsplit("/", 1)[-1])))


def render_card(card: dict[str, Any]) -> str:
    """The card as text."""
    lines = [
        f"{card['name']} ({card['distribution']} {card['version']})",
        f"  {card['summary']}",
        f"  interface {card['interface']}",
        f"  hooks     {', '.join(card['hooks'])}",
    ]
    if card["requires"]:
        lines.append(f"  requires  {', '.join(card['requires'])}")
    if card["auxiliary"]:
        lines.append(f"  losses    {', '.join(card['auxiliary'])}")
    lines.append("  options" if card["options"] else "  no options")
    table = [(name, str(o["default"]), o["type"], o["description"]) for name, o in card["options"].items()]
    lines += [f"    {line}" for line in aligned(table).splitlines()] if table else []
    return "\n".join(lines)


def data_rows() -> list[dict[str, Any]]:
    """One row for each installed data set; nothing is imported but core's own."""
    rows = []
    for offer in catalogue.offers():
        found = static.inspect(offer)
        if "build_data" in found.hooks:
            broken = f"BROKEN: {found.problem}" if found.problem else None
            rows.append(
                {
                    "name": offer.name,
                    "distribution": offer.distribution,
                    "version": offer.version,
                    "summary": broken or found.summary,
                }
            )
    return rows


def render_data(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    return aligned([("NAME", "DISTRIBUTION", "WHAT"), *((r["name"], r["distribution"], r["summary"]) for r in rows)])


def load_data(what: str, sets: Sequence[str], verify: bool = False) -> PreparedData:
    """The data of a recipe file, or of a data set's name with ``--set data...`` changes, as a run would look at it.

    Args:
        what: the recipe's path, or the name, or ``FILE.py:CLASS``.
        sets: changes.
        verify: decode all images.

    Raises:
        LtcoreError: as for a run.
    """
    from ltcore.plan.plan import provider
    from ltcore.recipe.loading import load_recipe
    from ltcore.training.data import inspected, read_data

    with tempfile.TemporaryDirectory() as folder:
        recipe, written = Path(what), Path(folder) / "data.yaml"
        if recipe.suffix not in (".yaml", ".yml"):
            offer = catalogue.asked(what)
            recipe = written
            recipe.write_text(_DATA_ONLY.format(offer.name if offer.is_packaged else "synthetic"), encoding="utf-8")
            # A file is relative to the working directory, as what --set says is.
            sets = sets if offer.is_packaged else (f"data.use={what}", *sets)
        try:
            loaded = load_recipe(recipe, sets)
            data = read_data(loaded, provider(loaded, "data", loaded.recipe.data.use)[1])
            return inspected(loaded, data, verify)
        except LtcoreError as error:
            # The user has not written this recipe, and cannot look at it.
            error.saying(*(str(line).replace(f"{written}:1: ", "") for line in error.args))
            raise
