"""The commands of contributors: pages name what the justfile has, CI runs all checks, versions are stated once."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
JUST = Path(sys.executable).parent / "just"
LOWEST = ROOT / "requirements-lowest.txt"


@pytest.fixture(scope="module")
def just():
    """What ``just`` makes of a command line in the root."""
    if not JUST.exists():
        pytest.skip("needs rust-just, of the group `lint`")

    def run(*words):
        return subprocess.run([JUST, *words], cwd=ROOT, capture_output=True, text=True, check=True)

    return run


def test_a_plain_just_lists_every_recipe_with_a_line(just):
    recipes = json.loads(just("--dump", "--dump-format", "json").stdout)["recipes"]
    shown = {name: recipe for name, recipe in recipes.items() if not name.startswith("_")}
    assert len(shown) > 20 and all(recipe["doc"] for recipe in shown.values())
    listed = re.findall(r"^ {4}(\w[\w-]*).* # ", just().stdout, re.MULTILINE)
    assert sorted(listed) == sorted(shown)


def test_ci_runs_every_check(just):
    done = just("--dry-run", "ci").stderr.splitlines()
    for line in ("ruff check .", "ruff format --check .", "lint-imports", "mypy", "mypy plugins/*/src"):
        assert line in done
    assert {'pytest -q "$@"', "python .ci/check_release.py"} <= set(done)
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "uv run just ci"


def test_pages_name_commands_that_there_are(just):
    recipes = json.loads(just("--dump", "--dump-format", "json").stdout)["recipes"]
    pages = [
        path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / ".pre-commit-config.yaml")
    ]
    named = {name for text in pages for name in re.findall(r"\buv run just ([\w-]+)", text)}
    assert "ci" in named and named <= set(recipes)


def test_every_generator_is_run(just):
    done = just("--dry-run", "generate").stderr
    for path in (*ROOT.glob("docs/make_*.py"), ROOT / "benchmarks" / "recipe_index.py"):
        assert f"python {path.relative_to(ROOT)}\n" in done
    assert "python .ci/plugins.py --write\n" in done


def test_commits_are_checked_with_the_tested_ruff():
    (ruff,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert f"ruff=={ruff['rev'].removeprefix('v')}" in (ROOT / "requirements-tested.txt").read_text().splitlines()


def test_a_bug_report_asks_for_what_there_is(cli):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    asked = {part["id"]: part["attributes"]["description"] for part in form["body"] if "id" in part}
    assert "runs/RECIPE/RUN/environment.json" in asked["environment"]
    for command in re.findall(r"(?:the recipe:|output of) `ltcore ([^`]*)`", " ".join(asked.values())):
        said = cli(*command.replace("RECIPE", str(ROOT / "recipes" / "digits_lt_ce.yaml")).split())
        assert said.code == 0, command
        if "--json" in command:
            assert json.loads(said.out)["recipe"] == "digits_lt_ce"


def test_decisions_are_short_and_linked():
    page = (ROOT / "docs" / "architecture.md").read_text()
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert len(records) == page.count("(decisions/")
    for path in records:
        text = path.read_text()
        assert len(text.splitlines()) < 60 and f"(decisions/{path.name})" in page
        assert re.findall("^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def _bounds():
    """Everything that has a lower bound: of core, its extras, the plugins and theirs, and the tools for tests."""
    root = tomllib.loads((ROOT / "pyproject.toml").read_text())
    projects = [root, *(tomllib.loads(path.read_text()) for path in ROOT.glob("plugins/*/pyproject.toml"))]
    stated = list(root["dependency-groups"]["test"])
    for project in (each["project"] for each in projects):
        stated += project.get("dependencies", [])
        stated += [entry for extra in project.get("optional-dependencies", {}).values() for entry in extra]
    return [need for need in map(Requirement, stated) if not need.name.startswith("ltcore")]


def test_the_lowest_versions_are_the_lower_bounds():
    lines = dict(line.split("==") for line in LOWEST.read_text().splitlines())
    lowest = {}
    for need in _bounds():
        (bound,) = [Version(each.version) for each in need.specifier if each.operator == ">="]
        lowest[need.name] = max(bound, lowest.get(need.name, bound))
    assert len(lowest) > 20
    for name, bound in lowest.items():
        assert Version(lines[name]) == bound, f"{name}: run just lowest-versions, or raise the bound to {lines[name]}"
