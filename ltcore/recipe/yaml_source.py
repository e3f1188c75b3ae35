"""YAML in and out: a small, predictable part of YAML 1.2, with the place of every value.

Booleans are ``true`` and ``false`` only (``off`` is text), ``1e-3`` is a number, integers are decimal, nothing is a
date. Anchors and aliases work; merge keys (``<<``), tags and keys that are not text are refused.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ltcore.errors import RecipeError, nearest
from ltcore.recipe.located import Located, Scalar

_TAG = "tag:yaml.org,2002:"
#: Plain scalars that are not text: tag, pattern, first characters. The loader and the dumper share them, so that the
#: dumper quotes exactly the strings that the loader would read as something else.
_RESOLVERS = (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", "n~"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
    ("merge", r"<<", "<"),
)
_BREAK = re.compile("[\n\r\x85\u2028\u2029]")
# Far beyond any recipe; they stop a file whose aliases multiply, or that nests deeper than a JSON parser follows.
_MAX_VALUES = 100_000
_MAX_DEPTH = 50
_MAX_BYTES = 2**18
_LARGEST = 2**63  # what no whole number of a recipe reaches


class _Loader(yaml.SafeLoader):
    """Stops while parsing, since PyYAML's time and stack grow with the depth."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 -- as PyYAML declares it
    depth = count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node with what is in it."""
        self.depth += 1
        self.count += 1
        if self.depth > _MAX_DEPTH:
            raise _TooMuchError(f"nested more than {_MAX_DEPTH} deep")
        if self.count > _MAX_VALUES:
            raise _TooMuchError(f"more than {_MAX_VALUES} values")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _TooMuchError(Exception):
    """A document that is larger than any recipe."""


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 -- as PyYAML declares it

    def ignore_aliases(self, data: Any) -> bool:
        """Write repeated values out."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Quote and escape line breaks of every kind; PyYAML's other styles turn some into spaces."""
        return self.represent_scalar(f"{_TAG}str", data, style='"' if _BREAK.search(data) else None)


_Dumper.add_representer(str, _Dumper.represent_str)
for _name, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _initials = [*_first, ""] if _name == "null" else list(_first)
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})\Z"), _initials)


def parse(text: str, place: Callable[[int], str]) -> Located:
    """Read one YAML document; an empty one is null.

    Args:
        text: the document.
        place: line number, from 1, to the place shown in messages.

    Raises:
        RecipeError: the text is not YAML, or uses what recipes leave out.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(f"{place(line)}: the character {chr(_ordinal(error))!r} is not allowed in YAML") from None
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(f"{place(mark.line + 1 if mark else 1)}: not valid YAML: {_problem(error)}") from None
    except (ValueError, OverflowError):  # an escape such as "\UFFFFFFFF"
        raise RecipeError(f"{place(loader.line + 1)}: not valid YAML: an escape names no character") from None
    except _TooMuchError as error:
        raise RecipeError(f"{place(loader.line + 1)}: {error}") from None
    except RecursionError:
        raise RecipeError(f"{place(1)}: nested more than {_MAX_DEPTH} deep") from None
    finally:
        loader.dispose()
    return Located(None, place(1)) if node is None else _Converter(place).located(node)


def read_recipe_file(path: Path) -> Located:
    """Read a recipe file, whose top level is a mapping.

    Raises:
        RecipeError: the file cannot be read or is not such a file; the message begins with the path as it was given.
    """
    try:
        text = _content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: not a text file in UTF-8") from None
    except FileNotFoundError:
        near = nearest(path.name, (p.name for p in path.parent.glob("*.y*ml")))
        raise RecipeError(f"{path}: no such file{near}") from None
    except IsADirectoryError:
        raise RecipeError(
            f"{path}: is a directory; name a recipe file in it, or for a folder of images: ltcore init {path}"
        ) from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    root = parse(text, lambda line: f"{path}:{line}")
    if root.value is None:
        raise RecipeError(f"{root.where}: the recipe is empty")
    if not isinstance(root.value, dict):
        raise RecipeError(f"{root.where}: a recipe is a mapping of keys to values ('data: ...', 'stages: ...')")
    return root


def _content(path: Path) -> bytes:
    """The content of a regular file of a recipe's size; nothing is read of what is none.

    Raises:
        OSError: it cannot be read.
        RecipeError: it is no regular file, or too large.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise RecipeError(f"{path}: is a pipe or a device; write the recipe into a file first")
        content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            size = max(about.st_size, len(content))
            raise RecipeError(
                f"{path}: has {size:,} bytes, and a recipe has at most {_MAX_BYTES:,}; is it another file?"
            )
        return content


def dump_yaml(source: dict[str, Any]) -> str:
    """Write plain data as YAML that `parse` reads back to the same data; innermost lists and mappings on one line."""
    return yaml.dump(
        source, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=float("inf")
    )


def dump_line(entry: dict[str, Any]) -> str:
    """Write a mapping of one entry as one line of YAML, ``key: value``, whatever the value holds."""
    text: str = yaml.dump(
        entry, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=float("inf")
    )
    return text.strip()[1:-1]


class _Converter:
    """Turns composed nodes into located values."""

    def __init__(self, place: Callable[[int], str]) -> None:
        self.place = place
        self.open: set[int] = set()
        self.count = 0

    def located(self, node: yaml.Node, where: str | None = None) -> Located:
        here = self.place(node.start_mark.line + 1)
        where = here if where is None else where
        self.count += 1
        if id(node) in self.open:
            raise RecipeError(f"{where}: an alias refers to the value that contains it")
        if self.count > _MAX_VALUES:
            raise RecipeError(f"{where}: more than {_MAX_VALUES} values; do aliases repeat each other?")
        if len(self.open) >= _MAX_DEPTH:
            raise RecipeError(f"{where}: nested more than {_MAX_DEPTH} deep")
        self.open.add(id(node))
        value: dict[str, Located] | list[Located] | Scalar
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            value = self._mapping(node)
        elif isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            value = [self.located(child) for child in node.value]
        else:
            value = _scalar(node, here)
        self.open.remove(id(node))
        return Located(value, where)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Located]:
        entries: dict[str, Located] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            where = self.place(line)
            if key_node.tag == f"{_TAG}merge":
                raise RecipeError(f"{where}: merge keys ('<<') are not supported; use 'extends', or repeat the keys")
            key = _scalar(key_node, where) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                hint = f" {key_node.value}; put it in quotes" if isinstance(key_node, yaml.ScalarNode) else ""
                raise RecipeError(f"{where}: a key must be text, not{hint or ' a list or mapping'}")
            if key in entries:
                raise RecipeError(
                    f"{where}: key '{key}' appears twice in one mapping; the first is on line {lines[key]}"
                )
            entries[key] = self.located(value_node, where)
            lines[key] = line
        return entries


def _scalar(node: yaml.Node, where: str) -> Scalar:
    """The value of a scalar node by its tag."""
    if isinstance(node, yaml.ScalarNode):
        text = node.value
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "merge"):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise RecipeError(f"{where}: the text holds half of a surrogate pair, which is no character")
            if "\0" in text:
                raise RecipeError(f"{where}: the text holds the character NUL, which no name and no path has")
            return str(text)
        if kind == "null":
            return None
        if kind == "bool" and text in ("true", "false"):
            return bool(text == "true")
        try:
            if kind == "int":
                number = int(text)
                if abs(number) >= _LARGEST:
                    raise RecipeError(f"{where}: the number {text[:20]}... is beyond 64 bits; nothing is that large")
                return number
            if kind == "float":
                return float(re.sub(r"\.(inf|nan)\Z", r"\1", text))
        except ValueError:
            raise RecipeError(f"{where}: cannot be read as a number: {text[:40]}") from None
    tag = node.tag.replace(_TAG, "!!")
    raise RecipeError(f"{where}: the YAML tag '{tag}' is not supported; leave it out")


def _ordinal(error: yaml.reader.ReaderError) -> int:
    """The offending character, which PyYAML gives as a number or as text."""
    character: Any = error.character
    return character if isinstance(character, int) else ord(character)


def _problem(error: yaml.MarkedYAMLError) -> str:
    """What PyYAML says, on one line, with help for the commonest slip."""
    text = "; ".join(part for part in (error.context, error.problem) if part)
    return f"{text} (indent with spaces, not tabs)" if r"'\t'" in text else text
