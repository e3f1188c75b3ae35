"""What comes with ltcore to read and to copy; ``test_publishing.py`` has the same installed from wheels."""

import json
import re
from pathlib import Path

import pytest
import yaml

from ltcore.contract.hookspecs import HOOKS
from ltcore.discovery import catalogue
from ltcore.errors import RunError
from ltcore.recipe.identity import digest
from ltcore.recipe.loading import load_recipe
from ltcore.shipped import annotated, folder
from ltcore.shipped.recipes import render_recipes

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


# -- recipes -----------------------------------------------------------------------------------------------------------


def test_every_recipe_is_listed_with_the_figures_of_its_own_settings(cli):
    rows = {row["name"]: row for row in json.loads(cli("recipes", "list", "--json").out)}
    assert list(rows) == [path.stem for path in RECIPES]
    assert rows["digits_lt_ce"] == {
        "name": "digits_lt_ce",
        "description": "cross-entropy, the baseline",
        "data": "digits_lt",
        "published": [],
    }
    told = yaml.safe_load((ROOT / "recipes" / "cifar100_lt_ldam_drw.yaml").read_text())["published"]
    (own,) = [figure for figure in told if figure["when"] == {"data.imbalance.factor": 100}]
    assert len(told) > 1  # the others are of other imbalances
    assert rows["cifar100_lt_ldam_drw"]["published"] == [{"source": own["source"], "top1": own["value"]}]
    lines = render_recipes(list(rows.values())).splitlines()
    assert len(lines) == 1 + len(RECIPES)
    (line,) = [line for line in lines if line.startswith("cifar100_lt_ldam_drw ")]
    assert re.split(" {2,}", line)[1:3] == ["cifar100_lt", f"{own['value']} ({own['source']})"]


def test_a_copy_is_the_same_recipe(cli, tmp_path):
    of_a_file = {file: path for path in RECIPES for file in _chain(path) if file.startswith("base/")}
    assert len(of_a_file) == len(list(ROOT.glob("recipes/base/*")))
    for path in {*of_a_file.values(), *RECIPES[::30]}:
        said = cli("recipes", "copy", path.stem, tmp_path / path.stem)
        assert said.code == 0 and said.out.splitlines()[-1] == f"ltcore run {tmp_path / path.stem / path.name}"
        copied, ours = load_recipe(tmp_path / path.stem / path.name), load_recipe(path)
        assert (copied.source, digest(copied)) == (ours.source, digest(ours))
        written = {str(file) for file in (tmp_path / path.stem).rglob("*") if file.is_file()}
        assert set(said.out.partition("\n\n")[0].splitlines()) == written


def test_a_copy_that_was_changed_is_not_written_over_unasked(cli, tmp_path):
    (tmp_path / "base").mkdir()
    base = tmp_path / "base" / "digits_lt.yaml"
    base.write_text("mine\n")
    refused = cli("recipes", "copy", "digits_lt_ce", tmp_path)
    assert refused.code == 2 and f"{base}: is there already, and is another file; add --force" in refused.err
    assert base.read_text() == "mine\n" and not (tmp_path / "digits_lt_ce.yaml").exists(), "nothing was written"
    assert cli("recipes", "copy", "digits_lt_ce", tmp_path, "--force").code == 0
    assert cli("recipes", "copy", "digits_lt_ce.yaml", tmp_path).code == 0, "the same once more changes nothing"
    assert base.read_text() == (ROOT / "recipes" / "base" / "digits_lt.yaml").read_text()


def test_a_folder_that_cannot_be_made_is_one_message(cli, tmp_path):
    (tmp_path / "file").touch()
    refused = cli("recipes", "copy", "digits_lt_ce", tmp_path / "file")
    assert (refused.code, refused.err.count("\n")) == (2, 1) and f"{tmp_path / 'file'}" in refused.err
    (tmp_path / "digits_lt_ce.yaml").mkdir()
    refused = cli("recipes", "copy", "digits_lt_ce", tmp_path, "--force")
    assert (refused.code, refused.err.count("\n")) == (2, 1) and "is a folder" in refused.err


def test_a_copy_says_what_is_to_be_installed(cli, tmp_path, monkeypatch):
    there = [offer for offer in catalogue.offers() if offer.distribution in ("ltcore", "ltcore-focal")]
    monkeypatch.setattr(catalogue, "offers", lambda: there)
    said = cli("recipes", "copy", "digits_lt_ofa_focal", tmp_path).out
    assert "\nnot installed: pip install ltcore-cifar-resnet ltcore-ofa\n" in said


@pytest.mark.parametrize("command", ["copy", "show"])
def test_an_unknown_recipe_names_the_nearest(cli, command):
    refused = cli("recipes", command, "digit_lt_ce")
    assert (
        refused.code == 2 and "no recipe 'digit_lt_ce' comes with ltcore; did you mean 'digits_lt_ce'?" in refused.err
    )
    assert cli("recipes", command, "../pyproject").code == 2


SHOWN = ("digits_lt_ofa_focal", "digits_lt_stg_selected", "cifar100_lt_glag", "cifar100_lt_ldam_drw", "places_lt_lift")


@pytest.mark.parametrize("name", SHOWN)
def test_a_shown_recipe_is_the_recipe_and_says_where_each_value_comes_from(cli, name, tmp_path):
    path = ROOT / "recipes" / f"{name}.yaml"
    text = cli("recipes", "show", name).out
    (tmp_path / "shown.yaml").write_text(text)
    ours = load_recipe(path)
    assert load_recipe(tmp_path / "shown.yaml").recipe == ours.recipe
    files, defaults = set(), 0
    for line in text.splitlines()[:-1]:
        value, hash_, where = line.partition("  # ")
        key = re.match(r"[ -]*(?:'([^']*)'|([^:]+)):", value)
        if where == "default":
            defaults += 1
        elif where != "the file's name" and hash_:
            file, _, number = where.partition(":")
            files.add(file)
            named = key[1] or key[2] if key else value.strip(" -")
            there = (path.parent / file).read_text().splitlines()[int(number) - 1]
            # The name of a stage that is new in a recipe with a parent is the key that it stands under.
            assert named in there or (named == "name" and f"{value.split()[-1]}:" in there), line
        else:
            assert where == "the file's name" or value.endswith(":"), "a line that opens what follows"
    assert files == _chain(path) and defaults > 20
    values = len(re.findall("  # (?!default$)", text, re.MULTILINE)) - 1
    assert values == _leaves({key: value for key, value in ours.source.items() if key != "name"})


def _chain(path):
    """The names of the files, read with another reader of YAML."""
    parent = yaml.safe_load(path.read_text()).get("extends")
    name = str(path.relative_to(ROOT / "recipes"))
    return {name} | (_chain(path.parent / parent) if parent else set())


def _leaves(value):
    """Values that somebody wrote: scalars, and lists and mappings that have no mapping inside."""
    if isinstance(value, dict) and value:
        return sum(map(_leaves, value.values()))
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return sum(map(_leaves, value))
    return 1


def test_a_recipe_of_ones_own_is_shown_and_its_variables_stay(cli, write_recipe, tmp_path):
    hard = {
        "methods": {"ldam": {"options": {"a # b": "${env:UNSET}", "1": ["x: y", "true", None], "l": [{"m": 1}, 2]}}}
    }
    path = write_recipe(**hard, stages="[{name: one, epochs: 1, methods: [ldam], optimizer: {lr: 1}}]")
    shown = cli("recipes", "show", path)
    assert shown.code == 0, shown.err
    read = yaml.safe_load(shown.out)
    assert read["methods"]["ldam"]["options"] == hard["methods"]["ldam"]["options"]
    assert read["stages"][0]["optimizer"] == {"name": "sgd", "lr": 1, "groups": {}}
    path.write_text("stages: []\n")
    refused = cli("recipes", "show", path)
    assert refused.code == 2 and f"{path}:1" in refused.err


def test_places_are_told_from_the_recipes_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "child.yaml").write_text("extends: ../parent.yaml\nseed: 3\n")
    (tmp_path / "parent.yaml").write_text(
        "data: {use: synthetic}\nbackbone: {use: timm}\nstages: [{name: one, epochs: 1, optimizer: {lr: 1}}]\n"
    )
    text = annotated.annotated(tmp_path / "a" / "child.yaml")
    assert re.search(r"^seed: 3 +# child\.yaml:2$", text, re.MULTILINE)
    assert re.search(r"^  use: timm +# \.\./parent\.yaml:2$", text, re.MULTILINE)


# -- documentation -----------------------------------------------------------------------------------------------------


def test_every_page_and_card_is_printed(cli):
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert cli("docs", name).out.rstrip() == path.read_text().rstrip()
    card = (ROOT / "plugins" / "cdt" / "README.md").read_text()
    assert cli("docs", "ltcore-cdt").out == cli("docs", "count_norm").out
    assert cli("docs", "cdt").out.partition("\n")[0] == card.partition("\n")[0]
    lines = cli("docs").out.splitlines()
    listed = dict(re.split(" {2,}", line.strip(), maxsplit=1) for line in lines if line.startswith("  "))
    assert listed["recipes"] == "Recipes" and listed["plugins/loss"] and "CDT" in listed["ltcore-cdt"]
    assert [line for line in lines if not line.startswith("  ")] == [
        *("Tutorials", "How-to guides", "Reference", "Explanation", "Cards of plugins")
    ]
    pages = [path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in ROOT.glob("docs/**/*.md")]
    assert len(lines) == len(listed) + 5, "a page stands in two groups"
    assert set(listed) == {*pages} - {"README"} | {
        offer.distribution for offer in catalogue.offers() if offer.distribution != "ltcore"
    }


def test_an_unknown_page_names_the_nearest(cli):
    refused = cli("docs", "recipe")
    assert refused.code == 2 and "there is no page 'recipe'; did you mean 'recipes'?" in refused.err
    assert "did you mean 'count_norm'?" in cli("docs", "count_nrm").err
    assert cli("docs", "../README").code == 2


def test_a_card_that_a_plugin_does_not_bring_is_a_message(cli, fake_plugin):
    fake_plugin("lame", "")  # its metadata end with the version
    refused = cli("docs", "lame")
    assert refused.code == 2 and "'lame' brings no card" in refused.err


def test_hooks(cli):
    page = (ROOT / "docs" / "hooks.md").read_text()
    rows = [re.split(" {2,}", line) for line in cli("hooks").out.splitlines()[1:]]
    assert [(name, kind) for name, kind, _ in rows] == [(name, hook.kind) for name, hook in HOOKS.items()]
    for name in HOOKS:
        text = cli("hooks", name).out
        assert text.startswith(f"## `{name}`\n") and text.rstrip() in page and text.count("\n## ") == 0
        assert text.rstrip().endswith("```"), "down to the end of its example"
    refused = cli("hooks", "compute_los")
    assert refused.code == 2 and "there is no hook 'compute_los'; did you mean 'compute_loss'?" in refused.err


def test_an_installation_without_the_files_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("ltcore.shipped.__file__", str(tmp_path / "a" / "b" / "__init__.py"))
    with pytest.raises(RunError, match="this installation of ltcore is incomplete: reinstall it"):
        folder("recipes")
