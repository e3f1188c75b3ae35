"""Writing a new plugin: a complete distribution around the hooks that its author names, or the file that was tried.

Templates lie beside this package: one file per hook under ``templates/hooks``, those of several hooks under
``templates/kinds``, in sections, and the files around them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path

from ltcore.contract.hookspecs import HOOKS
from ltcore.contract.interface import INTERFACE, __version__
from ltcore.errors import RecipeError, listed, nearest
from ltcore.files.writing import telling, write_atomically
from ltcore.new.members import Made, Member, Taken
from ltcore.new.names import Names, collection
from ltcore.new.pages import card, recipe, recipe_name
from ltcore.new.parts import KINDS
from ltcore.new.source import init_module

#: What ``--license`` takes, with the name that pyproject.toml uses.
LICENSES = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause"}

_OTHERWISE = "or give another folder with --out"


def write_plugin(
    name: str | None,
    hooks: Sequence[str] = (),
    out: Path | None = None,
    license: str = "apache-2.0",
    author: str | None = None,
    force: bool = False,
    kind: str | None = None,
    methods: Sequence[str] = (),
    taken: Sequence[str] = (),
) -> list[Path]:
    """Write a distribution that can be installed, checked, trained with and published as it stands.

    Args:
        name: what recipes will call the method, such as ``my_noise``; of several methods, the distribution's.
        hooks: the hooks that it implements; by default `augment_features`.
        out: the folder to write; by default ``ltcore-NAME``.
        license: one of `LICENSES`.
        author: for pyproject.toml and the licence.
        force: write over files that are there.
        kind: one of `ltcore.new.parts.KINDS`, in the place of hooks.
        methods: several methods, each as ``NAME=KIND`` or ``NAME=HOOK+HOOK``.
        taken: ``FILE.py:CLASS``, methods that are there already.

    Returns:
        The files, in the order in which an author reads them.

    Raises:
        RecipeError: a name, a kind or a hook cannot be used, or the folder is not empty.
        PluginError: a file cannot be used.
    """
    members = _members(name, hooks, kind, methods, taken)
    distribution = members[0].names.distribution
    folder = out or Path(distribution)
    if folder.exists() and not force and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder} is there already; give another folder with --out, or write over it with --force")
    author = author or f"The {distribution} authors"
    written = []
    for place, text in _files(members, license, author):
        path = folder / place
        with telling(path.parent, _OTHERWISE):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode(), _OTHERWISE)
        written.append(path)
    return written


def _members(
    name: str | None, hooks: Sequence[str], kind: str | None, methods: Sequence[str], taken: Sequence[str]
) -> list[Member]:
    """The methods that are asked for.

    Raises:
        RecipeError: what is asked for contradicts itself.
    """
    if kind is not None and kind not in KINDS:
        raise RecipeError(f"there is no kind '{kind}'{nearest(kind, KINDS) or ';'} there is {listed(KINDS)}")
    if (hooks and kind) or ((hooks or kind) and (methods or taken)):
        raise RecipeError("give one of --hook, --kind, --method and --from; only the last two go together")
    if not methods and len(taken) < 2:
        if taken:
            return [Taken.of(taken[0], name)]
        if name is None:
            raise RecipeError("give the method a NAME; only what is taken with --from has one already")
        return [Made.of(Names.of(name), hooks or ["augment_features"], kind)]
    if name is None:
        raise RecipeError("give the distribution of several methods a NAME")
    package = collection(name)[0]
    members: list[Member] = [*(_asked(text, package) for text in methods), *(Taken.of(u, None, package) for u in taken)]
    seen = [member.names.name for member in members]
    if twice := next((each for each in seen if seen.count(each) > 1), None):
        raise RecipeError(f"two methods would be called '{twice}'")
    return members


def _asked(text: str, package: str) -> Made:
    """The method of ``NAME=KIND`` or ``NAME=HOOK+HOOK``."""
    name, equals, what = text.partition("=")
    if not (name and equals and what):
        raise RecipeError(f"--method {text}: write NAME=KIND or NAME=HOOK+HOOK, such as shift=calibration")
    names = Names.of(name, package)
    if what in KINDS:
        return Made.of(names, (), what)
    hooks = what.split("+")
    if wrong := next((hook for hook in hooks if hook not in HOOKS), None):
        known = [*KINDS, *HOOKS]
        raise RecipeError(f"--method {text}: there is no kind and no hook '{wrong}'{nearest(wrong, known)}")
    return Made.of(names, hooks)


def _files(members: Sequence[Member], license: str, author: str) -> Iterable[tuple[str, str]]:
    first = members[0].names
    package = f"src/{first.package.partition('.')[0]}"
    points = [f'{m.names.name} = "{m.names.package}:{m.names.class_name}"' for m in members]
    several = len(members) > 1
    common = {
        **first.fields(),
        "AUTHOR": author,
        "LICENSE": LICENSES[license],
        "YEAR": str(date.today().year),
        "RANGE": version_range(__version__),
        "INTERFACE": str(INTERFACE),
        "PACKAGE": first.package.partition(".")[0],
        "DESCRIPTION": _description(members).replace("\\", "").replace('"', "'"),
        "POINTS": "\n".join(points),
        "METHODS": ", ".join(f"`{m.names.name}`" for m in members),
        "CHECKED": " ".join(m.names.name for m in members),
        "RUNS": "\n".join(f"      - run: ltcore run recipes/{recipe_name(m)}" for m in members),
    }
    yield "README.md", card(members, common)
    for member in members:
        folder = "src/" + member.names.package.replace(".", "/")
        for name, text in member.modules():
            yield f"{folder}/{name}", text
    if several:
        exports = {member.names.package: [n for ns in member.exports.values() for n in ns] for member in members}
        yield f"{package}/__init__.py", init_module(f"Methods for ltcore: {common['METHODS']}", exports, "Methods")
    yield f"{package}/py.typed", ""
    for member in members:
        for name, text in member.tests():
            yield f"tests/{name}", text
    for member in members:
        yield f"recipes/{recipe_name(member)}", recipe(member)
    yield "pyproject.toml", template("pyproject.toml.txt", common)
    yield "LICENSE", template(f"licenses/{license}.txt", common)
    yield "CHANGELOG.md", template("CHANGELOG.md", common)
    yield ".gitignore", template("gitignore", common)
    yield ".github/workflows/ci.yml", template("ci.yml", common)


def _description(members: Sequence[Member]) -> str:
    first = members[0]
    if len(members) > 1:
        return f"{', '.join(member.names.class_name for member in members)} for ltcore"
    return first.summary if len(first.summaries) == 1 else f"{first.names.class_name} for ltcore"


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
