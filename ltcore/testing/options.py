"""The check `options`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from ltcore.contract.method import Method, Options
from ltcore.testing.report import Check

_UNKNOWN = "an_option_that_nobody_has"


def check_options(kind: type[Method], given: Mapping[str, Any]) -> Check:
    """Options are made, go to plain data and back, are described and frozen, and refuse an unknown name."""
    fields = getattr(kind.Options, "model_fields", {})
    tried = f"{len(fields)} option{'s' * (len(fields) != 1)}: round trip, schema, descriptions, frozen, unknown name"
    for message, change in _problems(kind, given):
        return Check("options", tried, "failed", message, change)
    return Check("options", tried, "passed")


def _problems(kind: type[Method], given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    options_class: Any = kind.Options
    if not (isinstance(options_class, type) and issubclass(options_class, Options)):
        yield f"{kind.__name__}.Options is {options_class!r}", "derive the options' class from ltcore.Options"
        return
    try:
        options = options_class(**given)
    except ValidationError as error:
        yield (
            f"options {dict(given)} are refused: {'; '.join(_said(error))}",
            "give every option a default, or set the class's `checked_with` to options that suit a tiny recipe",
        )
        return
    yield from _of_instance(options, options_class)
    yield from _of_schema(options_class)
    try:
        method = kind(options)
    except Exception as error:
        yield (
            f"{kind.__name__}(options) raises {type(error).__name__}: {error}",
            "take `options` and pass it to super()",
        )
        return
    if method.options != options:
        yield (
            f"the instance's options are {method.options!r}, not those it was given",
            "pass `options` on: super().__init__(options)",
        )


def _of_instance(options: Options, options_class: type[Options]) -> Iterator[tuple[str, str]]:
    name = options_class.__name__
    plain = json.loads(json.dumps(options.model_dump(mode="json")))
    try:
        again = options_class(**plain)
    except ValidationError as error:
        yield f"{name} does not accept its own values {plain}: {'; '.join(_said(error))}", _validators()
    else:
        if again != options:
            yield f"{name} changes on the way to plain data and back: {options!r} became {again!r}", _validators()
    try:
        options_class(**plain, **{_UNKNOWN: 1})
    except ValidationError:
        pass
    else:
        yield (
            f"{name} accepts an option that it does not have",
            "leave `extra` in model_config at 'forbid': a misspelled option must not pass",
        )
    for field in options_class.model_fields:
        try:
            setattr(options, field, getattr(options, field))
        except ValidationError:
            continue
        yield f"{name}.{field} can be set", "leave `frozen` in model_config at True; keep what changes in buffers"


def _of_schema(options_class: type[BaseModel]) -> Iterator[tuple[str, str]]:
    name = options_class.__name__
    try:
        schema = json.loads(json.dumps(options_class.model_json_schema()))
    except Exception as error:
        yield (
            f"{name} has no JSON Schema: {str(error).splitlines()[0]}",
            "use types that JSON has: numbers, text, lists, Literal; `ltcore schema` describes them to editors",
        )
        return
    for option, content in schema.get("properties", {}).items():
        if not str(content.get("description", "")).strip():
            yield f"{name}.{option} is not described", "write a docstring under the option: what it does, and its unit"


def _validators() -> str:
    return "let every validator accept what it returns"


def _said(error: ValidationError) -> list[str]:
    return [f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()]
