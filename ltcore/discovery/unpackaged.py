"""Methods in a file that is no distribution yet: ``./mine.py:Mine`` in a recipe, or in a command that takes a method.

A file is read once, because its author may edit it while it trains. The text that was read runs, is compared when a run
goes on, and is copied into the run's directory. Its module is named after its place and content, and is a second file
on ``sys.path``. So the processes that decode images can import it under that name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.discovery.offer import UNPACKAGED, Offer
from ltcore.errors import PluginError, listed, nearest

if TYPE_CHECKING:
    import ast
    from tempfile import TemporaryDirectory
    from types import ModuleType

PACKAGE = "ltcore_unpackaged"
_FORM = re.compile(r"(?P<file>[^:\0]+\.py):(?P<attribute>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")
_LARGEST = 2**22

#: Told of each file before its code is run; the command line says it to the user.
told: list[Callable[[Path], None]] = []
_folder: list[TemporaryDirectory[str]] = []
_run: dict[str, File] = {}


def names_file(use: str) -> bool:
    """Whether a ``use`` is meant to name a file: a method's name has no such character."""
    return any(mark in use for mark in "/\\:") or use.endswith(".py")


def split(use: str) -> tuple[str, str] | None:
    """File and class of ``FILE.py:CLASS``; None where it is written otherwise."""
    found = _FORM.fullmatch(use)
    return (found["file"], found["attribute"]) if found else None


class File:
    """A file of Python with methods.

    Args:
        path: where it is.
        name: what messages and the run's directory call it.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self.name = path, name or path.name

    @cached_property
    def content(self) -> bytes:
        """What it held when it was first asked for.

        Raises:
            PluginError: it is not there, cannot be read, or is no file of a program's size.
        """
        path = self.path
        try:
            if not path.exists():
                near = nearest(path.name, (other.name for other in path.parent.glob("*.py")))
                raise PluginError(f"{path}: there is no such file{near}")
            if not path.is_file():
                raise PluginError(f"{path}: is no file")
            content = path.read_bytes()
        except OSError as error:
            raise PluginError(f"{path}: cannot be read: {error.strerror}") from error
        if len(content) > _LARGEST:
            raise PluginError(f"{path}: has {len(content):,} bytes; a method's code has at most {_LARGEST:,}")
        return content

    @cached_property
    def digest(self) -> str:
        """Of its content, 16 hexadecimal digits."""
        import hashlib

        return hashlib.sha256(self.content).hexdigest()[:16]

    def offer(self, attribute: str, use: str | None = None) -> Offer:
        """What it offers under a class's name; nothing is run.

        Args:
            attribute: the class.
            use: what the recipe writes; by default ``NAME:CLASS``.

        Raises:
            PluginError: as for `content`.
        """
        import hashlib

        identity = hashlib.sha256(f"{self.path.absolute()}\0{self.digest}".encode()).hexdigest()[:8]
        module = f"{PACKAGE}.{re.sub(r'[^0-9A-Za-z]', '_', self.path.stem)}_{identity}"
        _run[module] = self
        return Offer(use or f"{self.name}:{attribute}", f"{module}:{attribute}", self.name, UNPACKAGED)


def ran(module: str) -> File | None:
    """The file that a module was made of; None for a module of another kind."""
    return _run.get(module)


def load(offer: Offer) -> Any:
    """Run an offer's file, where that has not been done, and return what it has under the class's name.

    Raises:
        PluginError: it does not run, imports a file beside it, or has no such name.
    """
    name, _, attribute = offer.value.partition(":")
    file = _run[name]
    module = sys.modules.get(name) or _executed(name, file)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise PluginError(f"{file.path} has no '{attribute}'{_others(module, attribute)}")
        found = getattr(found, part)
    return found


def _others(module: ModuleType, wanted: str) -> str:
    """The methods that a file has in place of the one that was asked for."""
    from ltcore.contract.method import Method

    known = [
        name
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, Method) and kind.__module__ == module.__name__
    ]
    return nearest(wanted, known) or (
        f"; its methods are {listed(known)}" if known else ", and no ltcore.Method at all"
    )


def _executed(name: str, file: File) -> ModuleType:
    import ast
    from importlib import import_module
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    path = file.path
    try:
        tree = ast.parse(file.content, str(path))
        code = compile(file.content, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise PluginError(f"{path}:{error.lineno}: {type(error).__name__}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise PluginError(f"{path}: is no Python: {error}") from error
    _refuse_beside(tree, file)
    _keep(name, file.content)
    for tell in told:
        tell(path)
    package = import_module(PACKAGE)
    module = ModuleType(name)
    module.__file__, module.__package__ = str(path), PACKAGE
    module.__spec__ = ModuleSpec(name, None, origin=str(path))
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):
            raise
        raise PluginError(f"{path}{_line(error, path)}: {_reason(error)}") from error
    setattr(package, name.rpartition(".")[2], module)
    return module


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it ends the process; put what is a program under if __name__ == '__main__'"
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _line(error: BaseException, path: Path) -> str:
    """``:12``, the last line of the file that led to an error; empty where none did."""
    from traceback import extract_tb

    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f":{lines[-1]}" if lines else ""


def _refuse_beside(tree: ast.Module, file: File) -> None:
    """Refuse imports of what lies beside a file: a run would keep and compare the one file only.

    Raises:
        PluginError: there is such an import.
    """
    import ast

    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}"]
        for name in names:
            if name.startswith(".") or _is_beside(name.partition(".")[0], file.path):
                raise PluginError(
                    f"{file.path}:{getattr(node, 'lineno', 1)}: imports '{name}', which lies beside it; a method "
                    "in one file stands alone, so that a run can keep what it was trained with. Put it into the file, "
                    "or make a package of both ('ltcore new')"
                )


def _is_beside(name: str, path: Path) -> bool:
    """Whether a top-level module is a neighbour of a file, and nothing that is installed."""
    from importlib.util import find_spec

    folder = path.parent
    if not ((folder / f"{name}.py").is_file() or ((folder / name).is_dir() and any((folder / name).glob("*.py")))):
        return False
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return True
    if spec is None:
        return True
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return any(Path(place).resolve().is_relative_to(folder.resolve()) for place in places)


def _keep(name: str, content: bytes) -> None:
    """Put what runs where other processes of this one find it by its name."""
    if not _folder:
        from tempfile import TemporaryDirectory

        _folder.append(TemporaryDirectory(prefix="ltcore-", ignore_cleanup_errors=True))
        package = Path(_folder[0].name, PACKAGE)
        package.mkdir()
        (package / "__init__.py").write_text('"""Methods of files that are no distributions."""\n')
        sys.path.append(_folder[0].name)
    Path(_folder[0].name, PACKAGE, f"{name.rpartition('.')[2]}.py").write_bytes(content)
