"""Pydantic's findings in plain words, with file, line, the known names and the nearest guess."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ltcore.contract.recipe import KeyPath
from ltcore.errors import RecipeError, listed, nearest
from ltcore.recipe.located import Key, Locator, shown_value
from ltcore.untrusted import printable

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], value: Any, locator: Locator, path: KeyPath = (), whose: str = "") -> Model:
    """Validate plain data strictly: ``true`` is no number, text is no number, a whole number is a number.

    Args:
        model: the pydantic model.
        value: plain data, as a recipe holds it.
        locator: where the recipe's values were written (`LoadedRecipe.locator`).
        path: the path of `value` in the recipe.
        whose: shown in parentheses after each message, such as ``method 'ldam', ltcore-ldam 0.1.0``.

    Raises:
        RecipeError: one line for each problem.
    """
    try:
        # Strict JSON is what a recipe means: it has lists for tuples and text for paths, but no text for numbers.
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        lines = []
        for inner, message in _problems(error, model, value, path, locator):
            full = (*path, *inner)
            name = f"{locator.shown(full)}: " if full else ""
            lines.append(printable(f"{locator.where(*full)}: {name}{message}{f' ({whose})' if whose else ''}"))
        raise RecipeError(*lines) from None


def unknown(noun: str, name: str, known: Iterable[str]) -> str:
    """``unknown option; did you mean 'gamma'?``, or the known names where none is near."""
    known = list(known)
    return f"unknown {noun}{nearest(name, known) or f'; known: {listed(known)}'}"


def _problems(
    error: ValidationError, model: type[BaseModel], value: Any, base: KeyPath, locator: Locator
) -> list[tuple[KeyPath, str]]:
    """KeyPath and message of each problem; what the members of a union say about one value becomes one message."""
    found: dict[KeyPath, list[tuple[str | None, str]]] = {}
    inputs: dict[KeyPath, Any] = {}
    for detail in error.errors(include_url=False):
        path, types = _resolve(detail, model, value)
        kind = detail["type"]
        expected, message = _expected(detail, types), ""
        if expected is not None:
            message = f"should be {expected}"
        elif kind == "extra_forbidden":
            message = unknown("option" if "options" in base + path else "key", str(path[-1]), _keys(types))
            if locator.inherited(*base, *path):
                message += f" (inherited; remove it with '{path[-1]}: null')"
        else:
            message = _message(detail)
        found.setdefault(path, []).append((expected, message))
        inputs[path] = detail["ctx"]["tag"] if kind == "union_tag_invalid" else detail["input"]

    result = []
    for path, findings in found.items():
        expectations = list(dict.fromkeys(expected for expected, _ in findings if expected is not None))
        if all(expected for expected, _ in findings):
            hint = _hint(inputs[path], expectations)
            message = f"should be {' or '.join(expectations)}, not {shown_value(inputs[path])}{hint}"
        else:
            message = "; or ".join(dict.fromkeys(message for _, message in findings))
        result.append((path, message))
    return result


_WORDS = {
    "a whole number": ("int_type", "int_parsing", "int_parsing_size", "int_from_float"),
    "a number": ("float_type", "float_parsing", "decimal_type", "decimal_parsing"),
    "a finite number": ("finite_number",),
    "text": ("string_type", "path_type"),
    "true or false": ("bool_type", "bool_parsing"),
    "a mapping": ("dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type"),
    "a list": ("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type", "sequence_type"),
    "null": ("none_required",),
}
_EXPECTED = {kind: words for words, kinds in _WORDS.items() for kind in kinds}
_RANGES = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}


def _expected(detail: ErrorDetails, types: list[Any]) -> str | None:
    """What completes ``should be ...``; None where the problem is of another kind."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in _RANGES:
        words, key = _RANGES[kind]
        return f"{words} {context[key]:g}" if isinstance(context[key], float) else f"{words} {context[key]}"
    if kind in ("literal_error", "enum"):
        names = _choices(types)
        return f"one of {', '.join(names)}" if len(names) > 1 else "".join(names) or str(context["expected"])
    if kind == "union_tag_invalid":
        return f"one of {context['expected_tags']}"
    return None


def _hint(value: Any, expectations: list[str]) -> str:
    """Help after ``should be X, not Y``."""
    if isinstance(value, str):
        choices = [name.strip("'") for text in expectations for name in text.removeprefix("one of ").split(", ")]
        quoted = any("'" in text for text in expectations)
        return nearest(value, choices) if quoted else ""
    if expectations == ["a mapping"] and value is None:
        return "; write {} for an empty one"
    if expectations == ["text"] and isinstance(value, (bool, int, float)):
        return "; put it in quotes"
    return ""


def _message(detail: ErrorDetails) -> str:
    """The message of a problem that is not of the form ``should be ...``."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in ("missing", "union_tag_not_found"):
        return "missing; it is required"
    if kind == "ltcore":
        return str(context["message"])
    if kind in ("value_error", "assertion_error") and "error" in context:
        return str(context["error"])
    for limit, words in (("min_length", "at least"), ("max_length", "at most")):
        if limit in context:
            unit = "character" if kind.startswith("string") else "value"
            actual = context.get("actual_length", len(detail["input"]))
            return f"should have {words} {context[limit]} {unit}{'' if context[limit] == 1 else 's'}, not {actual}"
    if kind == "string_pattern_mismatch":
        return f"should match {context['pattern']}, not {shown_value(detail['input'])}"
    message = detail["msg"]
    return message[:1].lower() + message[1:]


def _resolve(detail: ErrorDetails, model: type[BaseModel], value: Any) -> tuple[KeyPath, list[Any]]:
    """The path in the data of pydantic's location, and the types that may stand there (for an unknown key: around it).

    Pydantic's location also holds steps that are not in the data: the chosen member of a union, a marker for a key.
    """
    location, kind = detail["loc"], detail["type"]
    path: KeyPath = ()
    types: list[Any] = [model]
    for position, step in enumerate(location):
        last = position == len(location) - 1
        if isinstance(value, dict) and isinstance(step, str) and step in value:
            value = value[step]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        elif not (last and kind == "missing"):
            types = [t for t in types if _is_member(t, str(step))] or types
            continue
        path = (*path, step)
        if not (last and kind == "extra_forbidden"):
            types = [t for each in types for t in _below(each, step)]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        path = (*path, str(detail["ctx"]["discriminator"]).strip("'"))
    return path, types


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, without ``Annotated``; the annotation itself where it is none."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [t for member in get_args(annotation) for t in _alternatives(member)]
    return [annotation]


def _below(annotation: Any, step: Key) -> list[Any]:
    """The types that may stand at `step` within a value of this type."""
    if _is_model(annotation):
        for name, field in annotation.model_fields.items():
            if step in (name, field.alias):
                return _alternatives(field.annotation)
        return []
    arguments = get_args(annotation)
    if not arguments or get_origin(annotation) is Literal:
        return []
    return _alternatives(arguments[-1] if isinstance(step, str) else arguments[0])


def _is_member(annotation: Any, tag: str) -> bool:
    """Whether pydantic means this type when it writes `tag` for the member of a union."""
    if not _is_model(annotation):
        return False
    literals = (get_args(field.annotation) for field in annotation.model_fields.values())
    return annotation.__name__ == tag or any(tag in values for values in literals)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _keys(types: list[Any]) -> list[str]:
    """The keys that the models among the types know."""
    fields = [item for t in types if _is_model(t) for item in t.model_fields.items()]
    return list(dict.fromkeys(field.alias or name for name, field in fields))


def _choices(types: list[Any]) -> list[str]:
    """The values that the literals and enumerations among the types allow, as a message shows them."""
    values: list[Any] = []
    for t in types:
        if get_origin(t) is Literal:
            values += get_args(t)
        elif isinstance(t, type) and issubclass(t, Enum):
            values += [member.value for member in t]
    return [shown_value(value) for value in values]
