"""The JSON Schema of a recipe with the installed plugins, for editors and for checking recipes elsewhere."""

from __future__ import annotations

from typing import Any

from ltcore.contract.recipe import Recipe
from ltcore.discovery import catalogue, static
from ltcore.errors import PluginError

Schema = dict[str, Any]


def recipe_schema() -> tuple[Schema, list[str]]:
    """The schema, and for each plugin that had to be left out the reason.

    A recipe with ``extends`` may leave out what its parent says, remove it with null, and give ``stages`` as a mapping
    by name. So the schema has a complete form and a partial one, and the presence of ``extends`` chooses.
    """
    whole = Recipe.model_json_schema()
    definitions: Schema = whole.pop("$defs")
    options, skipped = _options(definitions)
    by_role: dict[str, list[str]] = {"data": [], "backbone": [], "methods": []}
    for offer in catalogue.offers():
        if offer.name in options:
            hooks = static.inspect(offer).hooks
            for role in ("data", "backbone"):
                if f"build_{role}" in hooks:
                    by_role[role].append(offer.name)
            if set(hooks) - {"build_data", "build_backbone"}:
                by_role["methods"].append(offer.name)
    for role, name in (("data", "Data"), ("backbone", "Backbone"), ("methods", "MethodEntry")):
        definitions[name]["properties"]["use"] = {
            "anyOf": [{"enum": by_role[role]}, {"type": "string", "pattern": r"^\./.+\.py:[A-Za-z_]"}],
            "description": definitions[name]["properties"]["use"].get("description", ""),
        }
        definitions[name]["allOf"] = [
            {"if": {"properties": {"use": {"const": use}}, "required": ["use"]}, "then": _with_options(options[use])}
            for use in by_role[role]
        ]
    whole["properties"]["methods"]["properties"] = {
        use: {
            "allOf": [{"$ref": "#/$defs/MethodEntry"}],
            "if": {"not": {"required": ["use"]}},
            "then": _with_options(options[use]),
        }
        for use in by_role["methods"]
    }
    whole["properties"]["name"].pop("default", None)
    whole["required"] = [name for name in whole.get("required", []) if name != "name"]
    partial = _partial(whole)
    partial["properties"]["extends"] = {"type": "string", "description": "The parent recipe, relative to this file."}
    partial["properties"]["stages"] = {
        "anyOf": [
            whole["properties"]["stages"],
            {"type": "object", "additionalProperties": _or_null({"$ref": "#/$defs/PartialStage"})},
        ]
    }
    partials = {f"Partial{name}": _partial(content) for name, content in definitions.items()}
    before = {"type": "string", "description": "Of a new stage: the stage that it comes before; else it comes last."}
    partials["PartialStage"]["properties"]["before"] = before
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ltcore recipe",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": partial,
        "else": whole,
        "$defs": definitions | partials,
    }
    return schema, skipped


def _options(definitions: Schema) -> tuple[dict[str, Schema], list[str]]:
    """The options of every method that can be imported, their own definitions moved beside the recipe's."""
    options, skipped = {}, []
    for offer in catalogue.offers():
        try:
            kind = catalogue.load(catalogue.find(offer.name))
        except PluginError as error:
            skipped.append(str(error))
            continue
        schema = kind.Options.model_json_schema(ref_template=f"#/$defs/{offer.name}.{{model}}")
        for name, content in schema.pop("$defs", {}).items():
            definitions[f"{offer.name}.{name}"] = content
        definitions[f"{offer.name}.Options"] = schema
        options[offer.name] = {"$ref": f"#/$defs/{offer.name}.Options"}
    return options, skipped


def _with_options(reference: Schema) -> Schema:
    return {"properties": {"options": reference}}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _partial(schema: Any) -> Any:
    """A copy in which nothing is required, and any key may be null."""
    if isinstance(schema, list):
        return [_partial(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    copied = {}
    for key, value in schema.items():
        if key == "$ref":
            copied[key] = value.replace("#/$defs/", "#/$defs/Partial")
        elif key == "properties":
            copied[key] = {name: _or_null(_partial(part)) for name, part in value.items()}
        elif key == "additionalProperties" and isinstance(value, dict):
            copied[key] = _or_null(_partial(value))
        elif key == "oneOf":  # with less said, more than one may fit: {gamma: 0.5} suits two schedules
            copied["anyOf"] = _partial(value)
        elif key in ("if", "discriminator"):
            copied[key] = value
        elif key != "required" and key != "default":
            copied[key] = _partial(value)
    return copied
