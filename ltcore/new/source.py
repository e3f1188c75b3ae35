"""The modules of a new plugin, as ruff formats them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping, Sequence

from ltcore.contract.interface import INTERFACE
from ltcore.new.names import Names
from ltcore.new.parts import Code, Part

_WIDTH = 120
_FUTURE = "from __future__ import annotations"


def functional_module(parts: Sequence[Part]) -> str:
    """``functional.py``: the mathematics, without the class around it."""
    pieces = [part.functional for part in parts]
    imports = import_block(statement for piece in pieces for statement in piece.imports)
    return _module('"""The mathematics as pure functions."""', _FUTURE, imports, *(piece.text for piece in pieces))


def method_module(names: Names, parts: Sequence[Part]) -> str:
    """``method.py``: options and class."""
    with_options = any(part.options for part in parts)
    buffers = [part.buffers for part in parts if part.buffers]
    statements = [statement for part in parts for statement in part.method.imports]
    statements += [f"from ltcore import Method, hookimpl{', Options' * (with_options or bool(buffers))}"]
    statements += ["from pydantic import Field"] * with_options
    used = _used(parts, [part.method for part in parts])
    statements.append(f"from {names.package}.functional import {', '.join(used)}")
    options = f'class {names.class_name}Options(Options):\n    """Options of {names.name}."""\n\n'
    options += "\n".join(part.options for part in parts if part.options)
    return _module(
        f'"""The method `{names.name}`."""',
        _FUTURE,
        import_block(statements, names.package),
        *([options] if with_options else []),
        _class(names, parts, with_options, buffers),
    )


def _class(names: Names, parts: Sequence[Part], with_options: bool, buffers: Sequence[str]) -> str:
    options = f"{names.class_name}Options" if with_options else "Options"
    if len(parts) == 1:
        docstring = f'    """{parts[0].summary}."""'
    else:
        named = {part: ", ".join(f"``{hook}``" for hook in part.hooks) for part in parts}
        rows = "\n".join(f"    * {named[part]}: {_lower(part.summary)}." for part in parts)
        docstring = f'    """What each of its hooks does.\n\n{rows}\n    """'
    attributes = [f'    interface = "{INTERFACE}"']
    requires = sorted({word for part in parts for word in part.requires})
    if requires:
        attributes.append(f"    requires = frozenset({{{', '.join(map(_quoted, requires))}}})")
    terms = [term for part in parts for term in part.auxiliary]
    if terms:
        attributes.append(f"    auxiliary = ({', '.join(map(_quoted, terms))},)")
    attributes += [f"    tap = {_quoted(part.tap)}" for part in parts if part.tap]
    attributes += [part.buffer_types for part in parts if part.buffer_types]
    bodies = [part.method.text for part in parts]
    if buffers:
        start = (
            f"    def __init__(self, options: {options} | None = None) -> None:\n        super().__init__(options)\n"
        )
        bodies.insert(0, start + "\n".join(buffers))
    base = f"Method[{options}]" if with_options else "Method"
    head = f"class {names.class_name}({base}):\n{docstring}\n\n" + "\n".join(attributes)
    return "\n\n".join([head, *bodies])


def init_module(summary: str, exports: Mapping[str, Sequence[str]], otherwise: str) -> str:
    """``__init__.py``: what can be imported from a package.

    Args:
        summary: for the docstring, without a full stop.
        exports: names by the module that defines them.
        otherwise: for the docstring where the summary is too long for it.
    """
    imports = import_block(
        [f"from {module} import {', '.join(names)}" for module, names in exports.items()], next(iter(exports))
    )
    public = ", ".join(_quoted(name) for name in sorted((n for names in exports.values() for n in names), key=_order))
    exported = f"__all__ = [{public}]"
    if len(exported) > _WIDTH:
        exported = "__all__ = [\n    " + public.replace(", ", ",\n    ") + ",\n]"
    docstring = f'"""{summary}."""'
    if len(docstring) > _WIDTH:
        docstring = f'"""{otherwise}."""'
    return f"{docstring}\n\n{imports}\n\n{exported}\n"


def test_modules(names: Names, parts: Sequence[Part]) -> tuple[str, str]:
    """The tests of the mathematics, and those of the method."""
    pieces = [part.test for part in parts]
    statements = [statement for piece in pieces for statement in piece.imports]
    statements.append(f"from {names.package} import {', '.join(_used(parts, pieces))}")
    functional = _module(
        '"""The mathematics against slow references and numbers worked by hand."""',
        import_block(statements, names.package),
        *(piece.text for piece in pieces),
    )
    return functional, method_tests(names)


def method_tests(names: Names) -> str:
    """The tests of a method."""
    return _module(
        '"""The method in short trainings: all that `ltcore check` looks at."""',
        import_block(
            [
                "import pytest",
                "from ltcore.testing import check_method",
                "from pydantic import ValidationError",
                f"from {names.package} import {names.class_name}",
            ],
            names.package,
        ),
        f"def test_it_keeps_to_what_ltcore_asks_of_a_method():\n    check_method({names.class_name})",
        "def test_unknown_options_are_refused():\n"
        '    with pytest.raises(ValidationError, match="nonsense"):\n'
        f"        {names.class_name}.Options(nonsense=1)",
    )


def exported(text: str, module: str, *wanted: str) -> list[str]:
    """The classes of `wanted` that a module's text defines itself."""
    defined = {node.name for node in ast.parse(text, module).body if isinstance(node, ast.ClassDef)}
    return [name for name in wanted if name in defined]


def import_block(statements: Iterable[str], first_party: str = "") -> str:
    """Import statements merged, in isort's order: standard library, third party, first party.

    Args:
        statements: one per line; what is asked for twice comes once.
        first_party: the package itself.
    """
    plain: set[str] = set()
    froms: dict[str, set[str]] = {}
    for node in ast.parse("\n".join(statements)).body:
        if isinstance(node, ast.Import):
            plain |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            froms.setdefault(node.module or "", set()).update(alias.name for alias in node.names)
    groups: list[list[str]] = [[], [], []]
    for module in sorted(plain):
        groups[_group(module, first_party)].append(f"import {module}")
    for module in sorted(froms):
        members = sorted(froms[module], key=_order)
        line = f"from {module} import {', '.join(members)}"
        if len(line) > _WIDTH:
            line = f"from {module} import (\n    " + ",\n    ".join(members) + ",\n)"
        groups[_group(module, first_party)].append(line)
    return "\n\n".join("\n".join(group) for group in groups if group)


def _group(module: str, first_party: str) -> int:
    top = module.partition(".")[0]
    return 2 if top == first_party.partition(".")[0] else 0 if top in sys.stdlib_module_names else 1


def _order(name: str) -> tuple[int, str]:
    """isort's: constants, classes, functions."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


def _used(parts: Sequence[Part], pieces: Sequence[Code]) -> list[str]:
    names = [name for part in parts for name in part.functional.defined]
    return [name for name in names if any(piece.uses(name) for piece in pieces)]


def _module(docstring: str, *pieces: str) -> str:
    """Docstring and imports a line apart, definitions two."""
    head = [docstring] + [piece for piece in pieces if piece.startswith(("from ", "import "))]
    definitions = [piece for piece in pieces if piece and not piece.startswith(("from ", "import "))]
    return "\n\n\n".join(["\n\n".join(head), *definitions]) + "\n"


def _lower(summary: str) -> str:
    return summary[0].lower() + summary[1:]


def _quoted(name: str) -> str:
    return f'"{name}"'
