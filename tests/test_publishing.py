"""Wheels of all our distributions in an environment of their own, and the pages for plugin authors run in it."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from ltcore.discovery.catalogue import offers

ROOT = Path(__file__).parent.parent
PROJECTS = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
PAGE = (ROOT / "docs" / "write_a_plugin.md").read_text()
SHORT = sorted((ROOT / "docs" / "plugins").glob("*.md"))
_BLOCK = re.compile(
    r"^(?:\*\*(?P<path>[\w./]+)\*\*[^\n]*\n(?:[^\n]+\n)*\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)


def blocks(text):
    """The page's files and commands in their order: (path or None, language, content)."""
    return [(m["path"], m["kind"], m["text"]) for m in _BLOCK.finditer(text)]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A wheel of each distribution, built as `pip wheel` builds it."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in PROJECTS:
        words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
        subprocess.run(words, cwd=project, check=True, capture_output=True)
    return folder


class Environment:
    """A virtual environment that has what ltcore depends on, and nothing of ltcore; nothing is fetched."""

    def __init__(self, folder, wheels):
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
        others = folder / "others"
        others.mkdir()
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if not re.match(r"(ltcore|__editable__|_ltcore|pip[-.]|pip$)", path.name) and path.suffix != ".pth":
                (others / path.name).symlink_to(path)
        (site,) = (folder / "env").glob("lib/python*/site-packages")
        (site / "others.pth").write_text(f"{others}\n")
        # The programs of what is installed there.
        programs = folder / "env" / "bin"
        (programs / "ruff").symlink_to(Path(sys.executable).parent / "ruff")
        for name in ("pytest", "mypy"):
            (programs / name).write_text(f'#!/bin/sh\nexec "{programs}/python" -m {name} "$@"\n')
            (programs / name).chmod(0o755)
        self.surroundings = {
            **{key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")},
            "PATH": f"{folder / 'env' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_NO_BUILD_ISOLATION": "0",  # which is how pip spells that there is none
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def run(self, line, folder):
        """Run a line of the shell; returns what it prints."""
        done = subprocess.run(
            ["sh", "-c", line], cwd=folder, env=self.surroundings, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def environment(wheels, tmp_path):
    """One for each test."""
    return Environment(tmp_path, wheels)


# -- wheels ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)
def test_a_wheel_has_every_file_of_its_package(project, wheels):
    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    (wheel,) = wheels.glob(f"{about['name'].replace('-', '_')}-{about['version']}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata, points) = (
            next(archive.read(name).decode() for name in archive.namelist() if name.endswith(f".dist-info/{file}"))
            for file in ("METADATA", "entry_points.txt")
        )
    source = project if project == ROOT else project / "src"
    package = about["name"].replace("-", "_")
    files = {
        str(path.relative_to(source))
        for path in (source / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    if project == ROOT:  # which carries recipes and documentation
        shipped = [*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("docs/**/*.md")]
        files |= {f"ltcore/shipped/files/{path.relative_to(ROOT)}" for path in shipped}
    assert packed == files and f"{package}/py.typed" in files
    for need in about["dependencies"]:
        assert re.sub(r"[,<>=].*", "", need) in metadata
    for group, names in (about.get("entry-points") or {}).items():
        assert f"[{group}]" in points and all(f"{name} = {place}" in points for name, place in names.items())


@pytest.mark.slow
def test_installed_from_wheels_everything_is_there_and_trains(environment, tmp_path):
    names = [f"ltcore-{path.name.replace('_', '-')}" for path in PROJECTS[1:]]
    environment.run(f"pip install ltcore {' '.join(names)}", tmp_path)
    rows = json.loads(environment.run("ltcore plugins --json --import", tmp_path))
    assert {row["name"]: row["distribution"] for row in rows} == {
        offer.name: offer.distribution for offer in offers() if offer.distribution in ("ltcore", *names)
    }
    assert not [row for row in rows if row["broken"]]
    (tmp_path / "empty").mkdir()
    ours = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    listed = json.loads(environment.run("ltcore recipes list --json", tmp_path / "empty"))
    assert {row["name"] for row in listed} == ours
    said = environment.run("ltcore recipes copy digits_lt_ofa_focal recipes", tmp_path / "empty")
    assert "not installed" not in said
    # All of it, as a reader would: the figures are those that the clone's recipe gives.
    environment.run(f"{said.splitlines()[-1]} --out copied", tmp_path / "empty")
    environment.run(f"ltcore run {ROOT / 'recipes' / 'digits_lt_ofa_focal.yaml'} --out cloned", tmp_path / "empty")
    copied, cloned = (
        json.loads(next((tmp_path / "empty" / out).glob("*/*/result.json")).read_text()) for out in ("copied", "cloned")
    )
    assert copied["after_calibration"] == cloned["after_calibration"]


@pytest.mark.slow
def test_recipes_and_documentation_are_read_where_ltcore_alone_is_installed(environment, tmp_path):
    environment.run("pip install ltcore", tmp_path)
    folder = tmp_path / "empty"
    folder.mkdir()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("")
        assert environment.run(f"ltcore docs {name}", folder).rstrip() == page.read_text().rstrip()
    assert "`compute_loss(" in environment.run("ltcore hooks compute_loss", folder)
    assert "# base/digits_lt.yaml:" in environment.run("ltcore recipes show digits_lt_ofa_focal", folder)
    said = environment.run("ltcore recipes copy digits_lt_ofa_focal", folder)
    assert "not installed: pip install ltcore-cifar-resnet ltcore-focal ltcore-ofa\n" in said
    environment.run(next(line for line in said.splitlines() if "pip" in line).removeprefix("not installed: "), folder)
    short = "--set stages.representation.epochs=1 --set stages.finetune.iterations=3"
    assert "results:" in environment.run(f"{said.splitlines()[-1]} {short}", folder)
    environment.run("pip install ltcore-cdt", folder)
    assert (
        environment.run("ltcore docs count_norm", folder).rstrip()
        == (ROOT / "plugins" / "cdt" / "README.md").read_text().rstrip()
    )


@pytest.mark.slow
def test_a_new_plugin_in_an_environment_of_wheels_only(environment, tmp_path):
    environment.run("pip install ltcore", tmp_path)
    environment.run("ltcore new mynoise --hook augment_features", tmp_path)
    folder = tmp_path / "ltcore-mynoise"
    environment.run("pip install .", folder)
    assert " passed" in environment.run("pytest -p no:cacheprovider", folder)
    assert "all passed" in environment.run("ltcore check mynoise", folder)
    assert "results:" in environment.run("ltcore run recipes/digits_lt_mynoise.yaml", folder)


# -- the pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_write_a_plugin_from_nothing_to_a_wheel(environment, tmp_path):
    """Every command of the page, with its files; and a broken plugin beside it harms nothing."""
    here = tmp_path
    outputs = {}
    for path, kind, text in blocks(PAGE):
        if path:
            (here / path).write_text(text)
        elif kind == "bash":
            for line in text.splitlines():
                if line.startswith("cd "):
                    here = here / line.removeprefix("cd ")
                else:
                    outputs[line] = environment.run(line, here)
    assert " passed" in outputs["pytest"] and "all passed" in outputs["ltcore check stretch"]
    assert "deviation" in outputs["ltcore plugins show stretch"]
    assert "augment_features" in outputs["ltcore trace recipes/digits_lt_stretch.yaml"]
    assert "results:" in outputs["ltcore run recipes/digits_lt_ofa_focal_stretch.yaml"]
    assert (here / "dist" / "ltcore_stretch-0.1.0-py3-none-any.whl").is_file()

    listing = next(text for path, kind, text in blocks(PAGE) if kind == "text")
    listed = {word for word in re.split(r"\s{2,}|\n", listing) if re.search(r"[./]|LICENSE", word) and " " not in word}
    assert listed <= {str(path.relative_to(here)) for path in here.rglob("*")}

    # Installed from a directory, as anybody would; and one that cannot be imported beside it.
    environment.run("pip uninstall -y ltcore-stretch && pip install ./ltcore-stretch", tmp_path)
    environment.run("ltcore new broken --hook compute_loss", tmp_path)
    (tmp_path / "ltcore-broken" / "src" / "ltcore_broken" / "__init__.py").write_text("import no_such_module\n")
    environment.run("pip install ./ltcore-broken", tmp_path)
    rows = {row["name"]: row for row in json.loads(environment.run("ltcore plugins --json --import", tmp_path))}
    assert rows["stretch"]["hooks"] == ["augment_features"] and not rows["stretch"]["broken"]
    assert "no_such_module" in rows["broken"]["broken"]
    short = "--set stages.representation.epochs=1 --set stages.finetune.iterations=3"
    assert "results:" in environment.run(f"ltcore run recipes/digits_lt_ofa_focal_stretch.yaml {short}", here)


@pytest.mark.parametrize("page", SHORT, ids=lambda page: page.stem)
def test_a_short_page_shows_what_new_writes(page, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = blocks(page.read_text())
    (new, cd, install), later = (text.splitlines() for _, kind, text in shown if kind == "bash")
    assert cli(*new.split()[1:]).code == 0 and install == 'pip install -e ".[dev]"'
    folder = tmp_path / cd.removeprefix("cd ")
    (package,) = (folder / "src").iterdir()
    written = (package / "functional.py").read_text() + (package / "method.py").read_text()
    code = [text.strip() for _, kind, text in shown if kind == "python"]
    assert len(code) == 2 and all(text in written for text in code)
    assert later[:2] == ["pytest", f"ltcore check {new.split()[2]}"]
    recipe = later[2].removeprefix("ltcore run ")
    assert (folder / recipe).is_file()


def test_there_is_a_page_for_each_of_the_kinds():
    assert [page.stem for page in SHORT] == ["backbone", "calibration", "data_set", "loss", "sampler"]
    for page in SHORT:
        assert f"plugins/{page.name}" in PAGE
