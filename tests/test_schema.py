"""``ltcore schema``: what it accepts and refuses, as an editor would."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))

GOOD = """
data: {use: synthetic, options: {class_counts: [24, 16], image_size: 8}, imbalance: {kind: exponential, factor: 2}}
backbone: {use: cifar_resnet, options: {depth: 8}}
methods:
  focal: {options: {gamma: 1.5}}
  mine: {use: ofa, options: {tap: layer2, head_ratio: 0.5}}
  tau_norm: {}
stages:
  - {name: one, epochs: 1, methods: [focal], optimizer: {name: sgd, lr: 0.1, momentum: 0.9}, schedule: {name: cosine}}
  - {name: two, iterations: 9, methods: [mine], trainable: [classifier], optimizer: {lr: 0.1}}
calibrate: [tau_norm]
"""


@pytest.fixture(scope="module")
def validator():
    from ltcore.recipe.json_schema import recipe_schema

    schema, skipped = recipe_schema()
    assert not skipped
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(json.loads(json.dumps(schema)))


@pytest.fixture
def accepts(validator):
    from ltcore.recipe.yaml_source import parse

    return lambda text: validator.is_valid(parse(text, str).plain())


def test_the_command_prints_the_schema(cli, validator):
    assert json.loads(cli("schema").out) == validator.schema


def test_what_is_broken_is_left_out_and_told(cli, fake_plugin):
    fake_plugin("lame", "import einops_of_the_future\n")
    result = cli("schema")
    assert result.code == 0 and "lame" not in result.out
    assert result.err.startswith("left out: method 'lame' (ltcore-lame 0.2.1) failed to import: No module named")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_our_recipes(accepts, path):
    # A base may leave things to the recipes that extend it; as a part it has to be right.
    part = path.parent.name == "base" and "\nextends:" not in path.read_text()
    assert accepts(path.read_text() + ("extends: whole.yaml\n" if part else ""))


def test_a_good_recipe(accepts):
    assert accepts(GOOD)


@pytest.mark.parametrize(
    ("group", "right"),
    [("{lr: 0.01, weight_decay: 0}", True), ("{}", True), ("{lr: 0}", False), ("{lr: fast}", False), ("null", False)],
)
def test_groups_of_an_optimizer(accepts, group, right):
    text = f"{{lr: 0.1, groups: {{classifier.*: {group}}}}}"
    assert "optimizer: {lr: 0.1}" in GOOD
    assert accepts(GOOD.replace("optimizer: {lr: 0.1}", f"optimizer: {text}")) == right
    child = f"extends: parent.yaml\nstages: {{two: {{optimizer: {{groups: {{classifier.*: {group}}}}}}}}}\n"
    assert accepts(child) == (right or group == "null")  # null removes the parent's


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("gamma: 1.5", "gama: 1.5"),  # an option of a method that is named by its key
        ("gamma: 1.5", "gamma: high"),
        ("gamma: 1.5", "gamma: -1"),
        ("tap: layer2", "tab: layer2"),  # of one that is named by `use`
        ("{use: ofa, options: {tap: layer2, head_ratio: 0.5}}", "{use: ofaa}"),
        ("tau_norm: {}", "tau_norm: {option: {}}"),
        ("use: synthetic, ", ""),
        ("use: synthetic", "use: focal"),
        ("use: cifar_resnet", "use: digits_lt"),
        ("class_counts: [24, 16]", "class_counts: [24, many]"),
        ("kind: exponential", "kind: exponental"),
        ("depth: 8", "depth: 9"),
        ("backbone:", "bakbone:"),
        ("epochs: 1", "epochs: one"),
        ("epochs: 1", "epoch: 1"),
        ("{name: cosine}", "{name: cosin}"),
        ("{name: cosine}", "{name: cosine, gamma: 1}"),
        ("{lr: 0.1}", "{name: sgd}"),
        ("calibrate: [tau_norm]", "calibrate: tau_norm"),
    ],
)
def test_a_bad_recipe(accepts, old, new):
    assert GOOD.count(old) == 1
    assert not accepts(GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("good", "text"),
    [
        (True, "{seed: 1}"),
        (True, "{stages: {one: {epochs: 2, schedule: {gamma: 0.5}}, two: null}}"),
        (True, "{methods: {focal: null, mine: {use: ofa, options: {tap: maps}}}}"),
        (True, "{methods: {mine: null}}"),
        (True, "{stages: [{name: one, epochs: 1, optimizer: {lr: 1}}]}"),
        (False, "{stages: {one: {epoch: 2}}}"),
        (False, "{stages: {one: {epochs: two}}}"),
        (False, "{methods: {mine: {use: ofa, options: {tab: maps}}}}"),
        (False, "{bakbone: {}}"),
        (False, "{extends: 3}"),
        (False, "{stages: [{name: one, epochs: 1}]}"),
    ],
)
def test_extends_makes_a_recipe_partial(accepts, good, text):
    assert accepts(yaml.dump({"extends": "base.yaml"} | yaml.safe_load(text))) is good


def test_without_extends_a_recipe_is_whole(accepts):
    assert not accepts("seed: 1")
    assert not accepts("stages: {one: {epochs: 2}}")
