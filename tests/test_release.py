"""The check before publishing: nothing to find in the project, and each mistake found."""

import re
import runpy
import shutil
import tomllib
from pathlib import Path

import pytest

from ltcore.new import version_range

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / ".ci" / "check_release.py"))
PLUGINS = runpy.run_path(str(ROOT / ".ci" / "plugins.py"))


@pytest.fixture
def copy(tmp_path):
    """The files that the check reads."""
    for path in [
        *(ROOT / name for name in ("pyproject.toml", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md")),
        *(ROOT / "ltcore" / name for name in ("contract/interface.py", "discovery/catalogue.py")),
        *ROOT.glob("plugins/*/pyproject.toml"),
        *ROOT.glob("plugins/*/src/*/py.typed"),
    ]:
        there = tmp_path / path.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, there)
    return tmp_path


def test_the_project_agrees_with_itself(copy):
    assert list(SCRIPT["mistakes"](ROOT)) == [] == list(SCRIPT["mistakes"](copy))


@pytest.mark.parametrize(
    ("file", "old", "new", "found"),
    [
        (
            "ltcore/contract/interface.py",
            r'__version__ = ".*"',
            '__version__ = "9.9.9"',
            "interface.py: __version__ is 9.9.9",
        ),
        ("CHANGELOG.md", r"## 0\.1\.0", "## 0.0.9", "CHANGELOG.md: there is no entry for 0.1.0"),
        ("CHANGELOG.md", "### Hooks", "### Fixed", "has no part 'Hooks'"),
        ("CITATION.cff", r"\nversion: .*", r"\nversion: 0.0.9", "CITATION.cff: version should be 0.1.0"),
        (
            "plugins/ofa/pyproject.toml",
            'version = "0.1.0"',
            'version = "0.2.0"',
            "ofa/pyproject.toml: version is 0.2.0",
        ),
        ("plugins/ofa/pyproject.toml", "ltcore>=0.1,<0.2", "ltcore>=0.1", "should have 'ltcore>=0.1,<0.2', not"),
        ("plugins/ofa/pyproject.toml", '"ltcore-ofa"', '"ltcore-other"', "is called ltcore-other"),
        ("pyproject.toml", '  "ltcore-ofa",\n', "", "pyproject.toml: the list of plugins is not that of plugins/*"),
        ("pyproject.toml", "ltcore-ofa = .*\n", "", "pyproject.toml: the list of plugins is not that of plugins/*"),
        ("pyproject.toml", "# end of plugins\n", "", "pyproject.toml: there should be 2 times 'plugins: written by"),
        ("CONTRIBUTING.md", "-e plugins/ofa ", "", "CONTRIBUTING.md: the list of plugins is not that of plugins/*"),
        ("plugins/ofa/pyproject.toml", '"ltcore_ofa:', '"ltcore_fao:', "there is no src/ltcore_fao"),
        ("plugins/ofa/pyproject.toml", "ofa = ", "focal = ", "is offered by ltcore-focal, too"),
        (
            "ltcore/discovery/catalogue.py",
            ' "ofa": "ltcore-ofa",',
            "",
            "catalogue.py: the list of plugins is not that of plugins/*",
        ),
    ],
)
def test_each_mistake_is_a_line_with_its_file(copy, file, old, new, found):
    text, count = re.subn(old, new, (copy / file).read_text(), count=1)
    assert count == 1
    (copy / file).write_text(text)
    lines = list(SCRIPT["mistakes"](copy))
    assert any(found in line and re.match(r"[\w./]+: ", line) for line in lines), lines


@pytest.mark.parametrize("version", ["0.1.0", "0.12.3", "1.4.2"])
def test_the_range_is_the_one_of_new_plugins(version):
    assert SCRIPT["version_range"](version) == version_range(version)


def test_a_new_plugin_touches_its_folder_only(copy):
    """The rest is derived: where uv and pip find it, and what a recipe that names it is told to install."""
    project = (ROOT / "plugins" / "tau_norm" / "pyproject.toml").read_text()
    folder = copy / "plugins" / "made_up"
    (folder / "src" / "ltcore_made_up").mkdir(parents=True)
    (folder / "src" / "ltcore_made_up" / "py.typed").touch()
    (folder / "pyproject.toml").write_text(project.replace("tau-norm", "made-up").replace("tau_norm", "made_up"))
    files = ["pyproject.toml", "ltcore/discovery/catalogue.py", "CONTRIBUTING.md"]
    before = {name: (copy / name).read_text() for name in files}
    assert sorted(line.partition(":")[0] for line in PLUGINS["stale"](copy)) == sorted(files)
    assert list(PLUGINS["stale"](copy, write=True)) == []
    assert list(SCRIPT["mistakes"](copy)) == []
    root = tomllib.loads((copy / "pyproject.toml").read_text())
    assert "ltcore-made-up" in root["dependency-groups"]["dev"]
    assert root["tool"]["uv"]["sources"]["ltcore-made-up"] == {"workspace": True}
    assert SCRIPT["_assigned"](copy / "ltcore" / "discovery" / "catalogue.py", "_OURS")["made_up"] == "ltcore-made-up"
    assert "-e plugins/made_up" in (copy / "CONTRIBUTING.md").read_text()
    shutil.rmtree(folder)
    assert list(PLUGINS["stale"](copy, write=True)) == []
    assert {name: (copy / name).read_text() for name in files} == before
