"""The door for authors: what `ltcore` gives, that our plugins take nothing else, and options in brackets."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

import pytest
from pydantic import ValidationError

import ltcore
import ltcore.testing
from ltcore import Method, Options, hookimpl

ROOT = Path(__file__).parent.parent
SOURCES = sorted(ROOT.glob("plugins/*/src/*"))
MODULES = sorted(ROOT.glob("plugins/*/src/**/*.py"))


# -- the two tables of names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", [ltcore, ltcore.testing], ids=lambda package: package.__name__)
def test_what_is_announced_to_type_checkers_is_what_is_given(package):
    announced = {}
    for node in ast.parse(Path(package.__file__).read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for each in node.body:
                assert isinstance(each, ast.ImportFrom)
                for alias in each.names:
                    assert alias.asname == alias.name  # strict mypy takes no other form for a re-export
                    announced[alias.name] = each.module.removeprefix(f"{package.__name__}.")
    assert announced == package._HOMES
    assert set(package.__all__) - {"__version__"} == set(package._HOMES)
    assert list(package._HOMES) == sorted(package._HOMES)


@pytest.mark.parametrize("package", [ltcore, ltcore.testing], ids=lambda package: package.__name__)
def test_every_name_is_defined_where_the_table_says(package):
    for name, home in package._HOMES.items():
        value = getattr(package, name)
        module = importlib.import_module(f"{package.__name__}.{home}")
        assert value is getattr(module, name)
        assert name == "hookimpl" or value.__module__ == module.__name__  # pluggy's class, made in contract.hook
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_importing_ltcore_needs_no_torch():
    code = "import sys, ltcore; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_page_is_what_the_script_writes():
    spec = importlib.util.spec_from_file_location("make_plugin_api", ROOT / "docs" / "make_plugin_api.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (ROOT / "docs" / "plugin_api.md").read_text()
    assert page == script.page(), "run: python docs/make_plugin_api.py"
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    named = [row[1].strip(" `").partition("(")[0] for row in rows]
    fixtures = ["ltcore_batch", "ltcore_check", "ltcore_context"]
    assert sorted(named) == sorted([*ltcore.__all__, *ltcore.testing.__all__, *fixtures])
    assert all(row[2].strip() for row in rows)


# -- first-party plugins -----------------------------------------------------------------------------------------------


def below(path):
    """What a module imports below `ltcore`, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module]
            if node.module == "ltcore":
                modules += [f"ltcore.{alias.name}" for alias in node.names if alias.name not in ltcore.__all__]
        for module in modules:
            if module.startswith("ltcore."):
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {module}"


def test_every_plugin_is_looked_at():
    packages = {path.name for path in SOURCES if (path / "__init__.py").is_file()}
    installed = {point.value.partition(":")[0].partition(".")[0] for point in entry_points(group="ltcore.plugins")}
    assert len(packages) == len(list(ROOT.glob("plugins/*/pyproject.toml"))) and packages <= installed
    assert packages == {path.relative_to(ROOT).parts[3] for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: "/".join(path.parts[-2:]))
def test_a_plugin_imports_from_ltcore_itself_only(path):
    assert list(below(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        "from ltcore.contract.samplers import PlainSampler",
        "import ltcore.errors as e",
        "from ltcore import seeding",
        "def f():\n    from ltcore.runs import saved",
    ],
)
def test_an_import_from_below_would_be_found(line, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "x.py"
    path.write_text(f"from ltcore import Method\nimport ltcore_focal.functional\n{line}\n")
    assert len(list(below(path))) == 1


@pytest.mark.parametrize("package", SOURCES, ids=lambda path: path.name)
def test_every_function_and_every_options_class_is_exported(package):
    public = set(importlib.import_module(package.name).__all__)
    for module in ("functional", "method"):
        if (package / f"{module}.py").is_file():
            body = ast.parse((package / f"{module}.py").read_text()).body
            kinds = ast.FunctionDef if module == "functional" else ast.ClassDef
            wanted = {node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")}
            assert wanted <= public, f"{package.name}.{module}: {sorted(wanted - public)} are not in __all__"
    assert (package / "method.py").is_file()


# -- options from the brackets -----------------------------------------------------------------------------------------


class Small(Options):
    """Options."""

    size: int = 1


class Large(Small):
    """More options."""

    height: int = 2


T = TypeVar("T", bound=Small)


class Base(Method[T]):
    """A base that leaves the options open."""


class Bracketed(Base[Large]):
    """A class with options."""

    @property
    def tap(self):
        """Read through a property."""
        return f"layer{self.options.height}"


def test_options_are_read_from_the_brackets():
    assert Method.Options is Options and Method().options == Options()
    assert Method[Small].Options is Options  # an alias, not a class
    assert Base.Options is Options and Bracketed.Options is Large
    assert Bracketed().tap == "layer2" and Bracketed(Large(height=3)).tap == "layer3"

    class Child(Bracketed):
        pass

    class Other(Bracketed):
        Options = Small

    class Mixed(Generic[T], Method[Small]):
        pass

    assert (Child.Options, Other.Options, Mixed.Options) == (Large, Small, Small)
    assert type("Made", (Bracketed,), {"adjust_logits": hookimpl(lambda self, logits: logits)}).Options is Large
    with pytest.raises(ValidationError, match="width"):
        Bracketed.Options(width=1)


@pytest.mark.parametrize("given", ["Small", int])
def test_brackets_that_hold_no_options_class_are_an_error(given):
    with pytest.raises(TypeError, match=r"Wrong: Method\[...\] takes a class that derives from ltcore.Options and is"):

        class Wrong(Method[given]):
            pass


def test_every_first_party_method_names_its_options_in_brackets():
    """No class body of ours says ``Options = ...``: type checkers would not know the type of ``self.options``."""
    for path in [*MODULES, *ROOT.glob("ltcore/data/*.py"), *ROOT.glob("ltcore/networks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            for child in node.body if isinstance(node, ast.ClassDef) else ():
                targets = child.targets if isinstance(child, ast.Assign) else [getattr(child, "target", None)]
                assert "Options" not in [getattr(target, "id", "") for target in targets], f"{path}:{child.lineno}"
