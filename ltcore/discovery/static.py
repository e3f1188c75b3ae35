"""What a method implements and whether it can be imported, read from its source: no plugin's code runs.

``ltcore plugins`` must be quick, and a plugin that is slow, noisy or broken must not matter to it. Modules are found
as Python would find them, parsed, and followed from the entry point through the imports of the same package. Only what
is certain to fail is a problem; what cannot be told without running the code (guarded imports, ``__getattr__``,
compiled modules) counts as sound. `ltcore.discovery.importing` settles it by importing in another process.
"""

from __future__ import annotations

import ast
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

from ltcore.contract import interface
from ltcore.contract.hookspecs import KINDS
from ltcore.discovery.catalogue import Offer
from ltcore.discovery.sources import Broken, Import, Source, parse, raised
from ltcore.errors import nearest

CORE = "ltcore"
_METHOD = (f"{CORE}.contract.method", "Method")

#: Stands for a module that exists as far as can be told, and cannot be read.
_OPAQUE = ModuleSpec("?", None)

#: A node and the module that it stands in, or the dotted name of a module.
_Found = tuple[Source, ast.AST] | str | None


@dataclass(frozen=True)
class Inspection:
    """What can be told of an offer without importing it.

    Attributes:
        hooks: the hooks that it implements, in the order of `ltcore.contract.hookspecs.KINDS`.
        problem: why it cannot be imported or used; None where nothing speaks against it.
        summary: what the class says of itself: its attribute ``summary``, else the first line of its docstring.
        interface: the hook interface that it says it was written for; None where that cannot be told.
        refusal: why this core cannot use it because of that, as `ltcore.contract.interface.refusal` says it.
    """

    hooks: tuple[str, ...]
    problem: str | None
    summary: str = field(default="", compare=False)
    interface: str | None = field(default=None, compare=False)
    refusal: str | None = field(default=None, compare=False)


def inspect(offer: Offer) -> Inspection:
    """Read an offer's hooks and its first certain failure from the source files."""
    module, _, attribute = offer.value.partition(":")
    reader = _Reader(_top(module))
    problems: list[str] = []
    hooks: Mapping[str, bool] = {}
    try:
        reader.enter(module)
    except Broken as broken:
        problems.append(str(broken))
    try:
        hooks = reader.hooks(module, attribute)
    except Broken as broken:
        problems.append(str(broken))
    stated = reader.interface.value if reader.interface else None
    refused = interface.refusal(stated, offer.distribution) if reader.interface else None
    # A newer interface comes first: it may be why an import or a hook is not there.
    problems[:0] = [refused] if refused else []
    for name, optional in hooks.items():
        if changed := interface.broken(name, stated, offer.distribution):
            problems.append(changed)
        elif name not in KINDS and not optional:
            problems.append(f"no hook '{name}'{nearest(name, KINDS)}")
    acting = tuple(name for name in KINDS if name in hooks)
    problem = problems[0] if problems else None
    return Inspection(acting, problem, reader.summary, stated if isinstance(stated, str) else None, refused)


class _Reader:
    """Follows one offer through its package and through core.

    Args:
        top: the top-level package of the offer.
    """

    def __init__(self, top: str) -> None:
        self._top = top
        self._specs: dict[str, ModuleSpec | None] = {}
        self._sources: dict[str, Source | str | None] = {}
        self._entered: set[str] = set()
        #: What the class says of itself, and of its interface, once `hooks` has found it.
        self.summary = ""
        self.interface: ast.Constant | None = None

    def spec(self, name: str) -> ModuleSpec | None:
        """Where a module is, as importing would find it, but without importing its parents; None where it is not."""
        if name not in self._specs:
            parent = name.rpartition(".")[0]
            try:
                self._specs[name] = self._submodule(name, parent) if parent else find_spec(name)
            except Exception:  # of a foreign import hook, or a module made by hand
                self._specs[name] = _OPAQUE
        return self._specs[name]

    def _submodule(self, name: str, parent: str) -> ModuleSpec | None:
        package = self.spec(parent)
        if package is None:
            return None
        if package.has_location and not (package.origin or "").endswith(".py"):
            return _OPAQUE  # a compiled module may bring submodules of its own
        locations = package.submodule_search_locations
        if locations is None:
            return _OPAQUE if package is _OPAQUE else None
        portions: list[str] = []
        for location in locations:
            finder = pkgutil.get_importer(location)
            found = finder.find_spec(name, None) if finder else None
            if found and found.loader:
                return found
            portions += (found.submodule_search_locations if found else None) or []
        if portions:
            namespace = ModuleSpec(name, None, is_package=True)
            namespace.submodule_search_locations = portions
            return namespace
        source = self.source(parent)
        if name in sys.modules or (source and source.dynamic):
            return _OPAQUE
        foreign = [hook for hook in sys.meta_path if not getattr(hook, "__module__", "").startswith("_frozen")]
        return next(filter(None, (hook.find_spec(name, locations) for hook in foreign)), None)

    def source(self, name: str) -> Source | None:
        """The parsed module, if it belongs to the offer's package or to core, and is Python source.

        Raises:
            Broken: it cannot be parsed.
        """
        if name not in self._sources:
            self._sources[name] = self._read(name) if _top(name) in (self._top, CORE) else None
        source = self._sources[name]
        if isinstance(source, str):
            raise Broken(source)
        return source

    def _read(self, name: str) -> Source | str | None:
        spec = self.spec(name)
        if spec is None or not (spec.has_location and spec.origin and spec.origin.endswith(".py")):
            return None
        package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        try:
            stat = os.stat(spec.origin)
            return parse(name, spec.origin, package, stat.st_mtime_ns, stat.st_size)
        except (OSError, RecursionError, MemoryError):
            return None

    def enter(self, name: str) -> None:
        """Go through a module and its parent packages, in the order in which importing would run them.

        Raises:
            Broken: importing is certain to fail.
        """
        parent = name.rpartition(".")[0]
        if parent:
            self.enter(parent)
        if name in self._entered:
            return
        self._entered.add(name)
        if self.spec(name) is None:
            raise Broken(f"No module named '{name}'")
        # A plugin's inspection takes core as given, except for the names that the plugin asks of it.
        source = self.source(name) if _top(name) == self._top else None
        if source:
            self._run(source, source.body)

    def _run(self, source: Source, body: Iterable[ast.stmt]) -> None:
        for node in body:
            match node:
                case ast.Import():
                    for alias in node.names:
                        self._import(alias.name)
                case ast.ImportFrom():
                    origin = source.origin(node)
                    self._import(origin)
                    for alias in node.names:
                        self._import_name(origin, alias.name)
                case ast.Raise():
                    raise Broken(raised(node) or "it raises on import")
                case ast.Try(handlers=handlers):
                    raises = [last for handler in handlers if isinstance(last := handler.body[-1], ast.Raise)]
                    if len(raises) == len(handlers):  # else a handler lets the import fail
                        self._run_unguarded(source, node, raises)

    def _run_unguarded(self, source: Source, node: ast.Try, raises: Sequence[ast.Raise]) -> None:
        """The imports of a ``try`` whose every handler ends in ``raise``, perhaps with a better message."""
        try:
            self._run(source, [child for child in node.body if isinstance(child, ast.Import | ast.ImportFrom)])
        except Broken as broken:
            raise Broken((len(raises) == 1 and raised(raises[0])) or str(broken)) from None

    def _import(self, name: str) -> None:
        self.enter(name if _top(name) in (self._top, CORE) else _top(name))

    def _import_name(self, module: str, name: str) -> None:
        source = self.source(module)
        if source is None or name == "*" or source.defines(name):
            return
        if self.spec(f"{module}.{name}"):
            self.enter(f"{module}.{name}")
        elif not source.is_open or module == CORE:  # core's `__getattr__` gives what it announces, and no more
            raise Broken(f"cannot import name '{name}' from '{module}'{source.guess(name)}")

    def hooks(self, module: str, attribute: str) -> dict[str, bool]:
        """Hooks that the offered class and its bases implement, by name, and whether each is marked as optional.

        Raises:
            Broken: there is no such class, or it is not a method.
        """
        source = self.source(module)
        if source is None:
            return {}
        first = attribute.partition(".")[0]
        if not (source.defines(first) or source.is_open or self.spec(f"{module}.{first}")):
            raise Broken(f"module '{module}' has no '{first}'{source.guess(first)}")
        try:
            found = self._resolve(source, ast.parse(attribute, mode="eval").body, set())
        except SyntaxError:
            raise Broken(f"'{attribute}' does not name a class") from None
        lineage = list(self._lineage(found, set()))
        known = [each for each in lineage if each]
        if lineage == known and not any((owner.name, node.name) == _METHOD for owner, node in known):
            raise Broken(f"{module}:{attribute} is not an ltcore.Method")
        self.summary = next(filter(None, (_summary(node) for owner, node in known if owner.name != _METHOD[0])), "")
        self.interface = _interface(lineage)
        members: dict[str, tuple[str, bool] | None] = {}
        for owner, node in known:  # a function without the mark hides a marked one that it overrides, as for pluggy
            members = self._members(owner, node) | members
        return dict(filter(None, members.values()))

    def _lineage(self, found: _Found, seen: set[ast.AST]) -> Iterator[tuple[Source, ast.ClassDef] | None]:
        """A class and its bases, nearest first; None stands for what cannot be read."""
        source, node = found if isinstance(found, tuple) else (None, None)
        if source is None or not isinstance(node, ast.ClassDef):
            yield None
        elif node not in seen:
            seen.add(node)
            yield source, node
            if node.keywords or node.decorator_list:
                yield None
            if (source.name, node.name) != _METHOD:
                for base in node.bases:
                    yield from self._lineage(self._resolve(source, base, set()), seen)

    def _members(self, source: Source, node: ast.ClassDef) -> dict[str, tuple[str, bool] | None]:
        """Names in a class body; with each, the hook that it implements and whether that is optional, or None."""
        members: dict[str, tuple[str, bool] | None] = {}
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                marks = [mark for mark in child.decorator_list if self._is_mark(source, mark)]
                members[child.name] = _marked(marks[0], child.name) if marks else None
            elif isinstance(child, ast.Assign):
                members |= {target.id: None for target in child.targets if isinstance(target, ast.Name)}
        return members

    def _is_mark(self, source: Source, mark: ast.expr) -> bool:
        """Whether a decorator is `ltcore.hookimpl`, called or not, under whatever name."""
        found = self._resolve(source, mark.func if isinstance(mark, ast.Call) else mark, set())
        return isinstance(found, tuple) and found[1] is found[0].names.get("hookimpl") and _top(found[0].name) == CORE

    def _resolve(self, source: Source, node: ast.AST | Import | None, seen: set[Import]) -> _Found:
        """What an expression in a module leads to, through imports, re-exports and plain assignments.

        Returns:
            The defining module and node, the dotted name of a module, or None where it cannot be told.
        """
        match node:
            case Import(module, None):
                return module
            case Import(module, str(name)):
                if node in seen:
                    return None
                seen.add(node)
                if origin := self.source(module):
                    binding = origin.names.get(name) or origin.hints.get(name)
                    bindings = [binding] if binding else [Import(star, name) for star in origin.stars]
                    for each in bindings:
                        if found := self._resolve(origin, each, seen):
                            return found
                return f"{module}.{name}" if self.spec(module) and self.spec(f"{module}.{name}") else None
            case ast.Name(id=name, ctx=ast.Load()):
                return self._resolve(source, Import(source.name, name), seen)
            case ast.Subscript(value=value):
                return self._resolve(source, value, seen)
            case ast.Attribute(value=value, attr=name):
                outer = self._resolve(source, value, seen)
                if isinstance(outer, str):
                    return self._resolve(source, Import(outer, name), seen)
                home, scope = outer or (source, node)
                for child in scope.body if isinstance(scope, ast.ClassDef) else ():
                    if isinstance(child, ast.ClassDef) and child.name == name:
                        return home, child
                return None
        return (source, node) if isinstance(node, ast.AST) else None


def _top(name: str) -> str:
    """The top-level package of a dotted name."""
    return name.partition(".")[0]


def _summary(node: ast.ClassDef) -> str:
    """A class's attribute ``summary``, else the first line of its docstring."""
    for child in node.body:
        match child:
            case ast.Assign(targets=[ast.Name(id="summary")], value=ast.Constant(value=str(text))):
                return text
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _interface(lineage: Iterable[tuple[Source, ast.ClassDef] | None]) -> ast.Constant | None:
    """What the nearest class says in ``interface``; None where that is no constant, or a class cannot be read."""
    for found in lineage:
        if found is None:
            return None
        for child in reversed(found[1].body):
            match child:
                case (
                    ast.Assign(targets=[ast.Name(id="interface")], value=value)
                    | ast.AnnAssign(target=ast.Name(id="interface"), value=value)
                ):
                    return value if isinstance(value, ast.Constant) else None
    return None


def _marked(mark: ast.expr, name: str) -> tuple[str, bool]:
    """The hook that a mark names, and whether it is optional."""
    keywords = mark.keywords if isinstance(mark, ast.Call) else []
    given = {keyword.arg: keyword.value.value for keyword in keywords if isinstance(keyword.value, ast.Constant)}
    return str(given.get("specname") or name), bool(given.get("optionalhook"))
