"""A module's source file, parsed: the names that it binds and imports, without running it."""

from __future__ import annotations

import ast
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ltcore.errors import nearest

#: Source that may define module-level names, or places to find submodules, out of the parser's sight.
_DYNAMIC = re.compile(
    rb"(?<![.\w])(globals|locals|vars|exec|setattr)\(|sys\.modules|__dict__|__path__|^\s+global\s", re.MULTILINE
)

#: Defined in every module.
_ALWAYS = frozenset(("__doc__", "__file__", "__loader__", "__name__", "__package__", "__path__", "__spec__"))


class Broken(Exception):
    """Importing is certain to fail; the message is the reason."""


@dataclass(frozen=True)
class Import:
    """What an import binds: a module (`name` is None), or a name in it, which may be a submodule."""

    module: str
    name: str | None = None


#: Names and what they are bound to: an import, a definition, the value of a plain assignment, or any other node.
Names = dict[str, ast.AST | Import]


@dataclass
class Source:
    """A parsed module.

    Attributes:
        name: its dotted name.
        package: its dotted package, which relative imports start from.
        body: its statements.
        names: what its module level may bind at run time, whatever the conditions. What it imports from itself
            (``from . import x``) is a submodule or bound elsewhere.
        hints: what it binds for type checkers only; a module with ``__getattr__`` announces its names there.
        stars: modules whose names it imports with ``*``.
        dynamic: whether it may define further names, or packages further submodules.
    """

    name: str
    package: str
    body: list[ast.stmt]
    names: Names = field(default_factory=dict)
    hints: Names = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    dynamic: bool = False

    def origin(self, node: ast.ImportFrom) -> str:
        """The dotted module that a ``from ... import`` names.

        Raises:
            Broken: it lies outside of the top-level package.
        """
        if not node.level:
            return node.module or ""
        parts = self.package.split(".") if self.package else []
        if node.level > len(parts):
            beyond = "beyond top-level package" if parts else "with no known parent package"
            raise Broken(f"attempted relative import {beyond}")
        return ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))

    def bind(self, node: ast.AST, names: Names) -> None:
        """Note the names that a statement binds; function and class bodies have their own."""
        match node:
            case ast.Import():
                for alias in node.names:
                    module = alias.name if alias.asname else alias.name.partition(".")[0]
                    names[alias.asname or module] = Import(module)
            case ast.ImportFrom():
                with suppress(Broken):
                    origin = self.origin(node)
                    self.stars += [origin for alias in node.names if alias.name == "*"]
                    bound = {alias.asname or alias.name: Import(origin, alias.name) for alias in node.names}
                    names |= {name: found for name, found in bound.items() if found != Import(self.name, name)}
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                names[node.name] = node
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                names[name] = value
            case ast.Name(id=name, ctx=ast.Store()):
                names[name] = node
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for hint in node.body:
                    self.bind(hint, self.hints)
                for other in node.orelse:
                    self.bind(other, names)
            case _:
                for child in ast.iter_child_nodes(node):
                    self.bind(child, names)

    @property
    def is_open(self) -> bool:
        """Whether it may define more names than can be seen."""
        return self.dynamic or bool(self.stars) or "__getattr__" in self.names

    def defines(self, name: str) -> bool:
        """Whether it is seen to define a name."""
        return name in self.names or name in _ALWAYS or (name in self.hints and "__getattr__" in self.names)

    def guess(self, name: str) -> str:
        """What to say of a name that it does not define."""
        if name in self.hints and "__getattr__" not in self.names:
            return ", which has it for type checkers only"
        return nearest(name, [known for known in {**self.names, **self.hints} if self.defines(known)])


@lru_cache(maxsize=512)
def parse(name: str, path: str, package: str, modified: int, size: int) -> Source | str:
    """A file's contents, or why it cannot be parsed; `modified` and `size` only tell its versions apart."""
    text = Path(path).read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = Source(name, package, ast.parse(text, path).body)
    except (SyntaxError, ValueError) as error:
        return reason(error)
    for node in source.body:
        source.bind(node, source.names)
    source.dynamic = bool(_DYNAMIC.search(text))
    return source


def raised(node: ast.Raise) -> str | None:
    """What a ``raise`` says, in the form of a failed import."""
    if node.exc is None:
        return None
    call = node.exc if isinstance(node.exc, ast.Call) else None
    kind = ast.unparse(call.func if call else node.exc)
    text = ", ".join(
        str(argument.value) if isinstance(argument, ast.Constant) else ast.unparse(argument)
        for argument in (call.args if call else [])
    )
    return text if text and kind in ("ImportError", "ModuleNotFoundError") else f"{kind}: {text}".removesuffix(": ")


def reason(error: BaseException) -> str:
    """What a failed import says in one line."""
    kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
    return f"{kind}{error}" if str(error) else type(error).__name__
