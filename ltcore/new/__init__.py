"""Writing a new plugin: a complete distribution around the hooks that its author names.

Templates lie beside this package: one file a hook under ``templates/hooks``, in sections, and the files around them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path

from ltcore.contract.interface import INTERFACE, __version__
from ltcore.errors import RecipeError
from ltcore.files.writing import telling, write_atomically
from ltcore.new.names import Names, check_hooks
from ltcore.new.pages import card, recipe, recipe_name
from ltcore.new.parts import Part, read_part
from ltcore.new.source import functional_module, init_module, method_module, test_modules

#: What ``--license`` takes, with the name that pyproject.toml uses.
LICENSES = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause"}

_OTHERWISE = "or give another folder with --out"


def write_plugin(
    name: str,
    hooks: Sequence[str] = (),
    out: Path | None = None,
    license: str = "apache-2.0",
    author: str | None = None,
    force: bool = False,
) -> list[Path]:
    """Write a distribution that can be installed, checked, trained with and published as it stands.

    Args:
        name: what recipes will call the method, such as ``my_noise``.
        hooks: the hooks that it implements; by default `augment_features`.
        out: the folder to write; by default ``ltcore-NAME``.
        license: one of `LICENSES`.
        author: for pyproject.toml and the licence.
        force: write over files that are there.

    Returns:
        The files, in the order in which an author reads them.

    Raises:
        RecipeError: the name or a hook cannot be used, or the folder is not empty.
    """
    names = Names.of(name)
    parts = [read_part(hook) for hook in check_hooks(hooks or ["augment_features"])]
    folder = out or Path(names.distribution)
    if folder.exists() and not force and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder} is there already; give another folder with --out, or write over it with --force")
    author = author or f"The {names.distribution} authors"
    written = []
    for place, text in _files(names, parts, license, author):
        path = folder / place
        with telling(path.parent, _OTHERWISE):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode(), _OTHERWISE)
        written.append(path)
    return written


def _files(names: Names, parts: Sequence[Part], license: str, author: str) -> Iterable[tuple[str, str]]:
    package = f"src/{names.package}"
    common = {
        **names.fields(),
        "AUTHOR": author,
        "LICENSE": LICENSES[license],
        "YEAR": str(date.today().year),
        "RANGE": version_range(__version__),
        "INTERFACE": str(INTERFACE),
        "DESCRIPTION": parts[0].summary if len(parts) == 1 else f"{names.class_name} for ltcore",
        "RECIPE": recipe_name(names, parts),
    }
    functional_tests, method_tests = test_modules(names, parts)
    yield "README.md", card(names, parts, common)
    yield f"{package}/functional.py", functional_module(parts)
    yield f"{package}/method.py", method_module(names, parts)
    yield f"{package}/__init__.py", init_module(names, parts)
    yield f"{package}/py.typed", ""
    yield f"tests/test_{names.name}_functional.py", functional_tests
    yield f"tests/test_{names.name}_method.py", method_tests
    yield f"recipes/{common['RECIPE']}", recipe(names, parts)
    yield "pyproject.toml", template("pyproject.toml.txt", common)
    yield "LICENSE", template(f"licenses/{license}.txt", common)
    yield "CHANGELOG.md", template("CHANGELOG.md", common)
    yield ".gitignore", template("gitignore", common)
    yield ".github/workflows/ci.yml", template("ci.yml", common)


def template(name: str, fields: dict[str, str]) -> str:
    """A template's text, with ``@FIELD@`` replaced."""
    text = (files("ltcore.new") / "templates" / name).read_text(encoding="utf-8")
    for field, value in fields.items():
        text = text.replace(f"@{field}@", value)
    return text


def version_range(version: str) -> str:
    """The versions of ltcore that a plugin made with `version` works with: ``>=0.1,<0.2``, from 1.0 on ``>=1.2,<2``."""
    major, minor = (int(part) for part in version.split(".")[:2])
    following = f"0.{minor + 1}" if major == 0 else str(major + 1)
    return f">={major}.{minor},<{following}"
