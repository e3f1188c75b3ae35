"""`extends`, ``--set``, ``${env:NAME}`` and the options of methods."""

import json
import math
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ltcore.errors import RecipeError
from ltcore.recipe import dump_yaml, load_recipe

BASE = """\
name: base
description: the parent's own
data: {use: digits_lt, options: {root: /data, split: a}}
backbone: {use: mlp}
methods:
  focal: {options: {gamma: 2}}
  drs: {}
stages:
  - name: joint
    epochs: 3
    methods: [focal, drs]
    optimizer: {lr: 0.1}
    schedule: {name: step, every: 2}
  - name: finetune
    epochs: 1
    optimizer: {lr: 0.1}
"""


@pytest.fixture(autouse=True)
def _base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("base.yaml", BASE)


def write(name, text):
    Path(name).parent.mkdir(exist_ok=True, parents=True)
    Path(name).write_text(text, encoding="utf-8")


def refused(name, sets=()):
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, sets)
    return str(caught.value)


def test_extends_merges_replaces_removes_and_patches():
    write(
        "child.yaml",
        """\
extends: base.yaml
data: {options: {split: null, extra: null}}
methods:
  drs: null
  focal: {options: {gamma: 1}}
stages:
  joint: {methods: [focal], schedule: {every: 1}}
  finetune: null
""",
    )
    loaded = load_recipe("child.yaml")
    assert loaded.source == {
        "name": "child",
        "data": {"use": "digits_lt", "options": {"root": "/data", "extra": None}},
        "backbone": {"use": "mlp"},
        "methods": {"focal": {"options": {"gamma": 1}}},
        "stages": [
            {
                "name": "joint",
                "epochs": 3,
                "methods": ["focal"],
                "optimizer": {"lr": 0.1},
                "schedule": {"name": "step", "every": 1},
            }
        ],
    }
    assert list(loaded.source) == ["name", "data", "backbone", "methods", "stages"]
    assert loaded.where("methods", "focal", "options", "gamma") == "child.yaml:5"
    assert loaded.where("data", "options", "root", "nothing") == "base.yaml:3"
    assert loaded.where("stages", 0, "epochs") == "base.yaml:10"
    assert loaded.where("stages", 0, "batch_size") == "child.yaml:7"
    assert str(loaded.fail(("stages", 0, "epochs"), "too few")) == "base.yaml:10: too few"


def test_extends_is_relative_to_the_file_and_chains():
    write("sub/middle.yaml", "extends: ../base.yaml\nseed: 5\ndescription: not inherited\n")
    write(
        "sub/leaf.yaml",
        "extends: middle.yaml\nstages:\n- {name: only, epochs: 1, methods: [focal, drs], optimizer: {lr: 1}}\n",
    )
    loaded = load_recipe("sub/leaf.yaml")
    assert (loaded.recipe.name, loaded.recipe.seed, loaded.recipe.description) == ("leaf", 5, "")
    assert [stage.name for stage in loaded.recipe.stages] == ["only"]
    assert loaded.where("backbone") == "sub/../base.yaml:4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: 1\nextends: bse.yaml",
            "child.yaml:2: extends: bse.yaml: no such file; did you mean 'base.yaml'? (child.yaml -> bse.yaml)",
        ),
        ("extends: .", "child.yaml:1: extends: .: is a directory (child.yaml -> .)"),
        ("extends: null", "child.yaml:1: extends: should be the path of one recipe file, not null"),
        ("extends: [base.yaml]", "child.yaml:1: extends: should be the path of one recipe file, not a list"),
        (
            "extends: ${env:LTCORE_UNSET}",
            "child.yaml:1: extends: the environment variable 'LTCORE_UNSET' is not set; set it",
        ),
        (
            "extends: loop.yaml",
            "loop.yaml:1: extends: the recipes extend each other in a circle: child.yaml -> loop.yaml -> child.yaml",
        ),
        ("extends: broken.yaml", "broken.yaml:2: not valid YAML: mapping values are not allowed here"),
        (
            "extends: base.yaml\nstages:\n  fintune: {epochs: 2}",
            "child.yaml:3: stages.fintune: base.yaml has no stage 'fintune'; did you mean 'finetune'? "
            "(known: 'joint', 'finetune'; a new stage says how long it is and its optimizer)",
        ),
        (
            "extends: base.yaml\nstages:\n  finetune: 3",
            "child.yaml:3: stages.finetune: should be a mapping of changes, not 3",
        ),
        (
            "extends: empty.yaml\nstages:\n  finetune: {}",
            "child.yaml:2: stages: empty.yaml has no list of stages that could be changed by name",
        ),
        (
            "extends: base.yaml\nmethods: {dsr: null}",
            "child.yaml:2: methods.dsr: should be a mapping, not null; write {} for an empty one",
        ),
        (
            "extends: base.yaml\nstages: {joint: {methods: [focal]}}",
            "base.yaml:7: methods.drs: method 'drs' is declared but no stage, calibration or adaptation uses it; "
            "name it in a stage's methods, or remove it (with extends: `drs: null`)",
        ),
    ],
)
def test_bad_extends(text, message):
    write("loop.yaml", "extends: ./child.yaml")
    write("broken.yaml", "a: 1\nb: c: d")
    write("empty.yaml", "seed: 1")
    write("child.yaml", text)
    assert refused("child.yaml") == message


def test_set():
    loaded = load_recipe(
        "base.yaml",
        [
            "methods.focal.options.gamma=1",
            "stages.finetune.epochs=7",
            "stages.0.optimizer={lr: 1e-2, nesterov: true}",
            "stages.joint.methods.1=drs",
            "data.transform.flip=true",
            "data.options.split=null",
            "data.options.new=",
            "description= a=b ",
            "stages.joint.schedule=null",
        ],
    )
    assert loaded.source["methods"]["focal"]["options"] == {"gamma": 1}
    assert [stage.get("epochs") for stage in loaded.source["stages"]] == [3, 7]
    assert loaded.source["stages"][0]["optimizer"] == {"lr": 0.01, "nesterov": True}
    assert loaded.source["data"]["transform"] == {"flip": True}
    assert loaded.source["data"]["options"] == {"root": "/data", "new": None}
    assert loaded.recipe.description == "a=b"
    assert "schedule" not in loaded.source["stages"][0]
    assert loaded.where("stages", 1, "epochs") == "--set stages.finetune.epochs=7"
    assert loaded.where("data", "transform", "crop_padding") == "--set data.transform.flip=true"
    removed = load_recipe("base.yaml", ["stages.finetune=null"])
    assert [stage.name for stage in removed.recipe.stages] == ["joint"]


def test_set_adds_and_removes_methods_and_stages():
    loaded = load_recipe("base.yaml", ["stages.joint.methods+=ofa", "methods.ofa.options.tap=maps", "calibrate+=tau"])
    assert loaded.source["stages"][0]["methods"] == ["focal", "drs", "ofa"]
    assert loaded.source["methods"]["ofa"] == {"options": {"tap": "maps"}}
    assert loaded.source["calibrate"] == ["tau"] and loaded.source["methods"]["tau"] == {}
    assert loaded.where("methods", "tau") == "--set calibrate+=tau"
    assert load_recipe("base.yaml", ["stages.joint.methods+=[drs, focal]"]).source == load_recipe("base.yaml").source
    without = load_recipe("base.yaml", ["stages.joint.methods-=[focal, drs]"])
    assert without.source["stages"][0]["methods"] == [] and set(without.source["methods"]) == set()
    stage = "{epochs: 2, methods: [own], optimizer: {lr: 0.1}}"
    loaded = load_recipe("base.yaml", ["methods.own={use: focal}", f"stages.last={stage}"])
    assert [stage.name for stage in loaded.recipe.stages] == ["joint", "finetune", "last"]
    assert (
        load_recipe("base.yaml", [f"stages.joint={stage}", "methods={own: {use: focal}}"]).recipe.stages[0].epochs == 2
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "has no '='; write PATH=VALUE, for example --set seed=1"),
        ("=1", "a name in the path is empty; write PATH=VALUE, for example --set seed=1"),
        ("data..root=1", "a name in the path is empty; write PATH=VALUE, for example --set seed=1"),
        ("sed=1", "a recipe has no key 'sed'; did you mean 'seed'?"),
        ("seed=[1", "not valid YAML: while parsing a flow sequence; expected ',' or ']', but got '<stream end>'"),
        ("seed=x", "seed: should be a whole number, not 'x'"),
        ("name.x=1", "'name' is 'base', not a mapping"),
        ("data.options.root.x=1", "'data.options.root' is '/data', not a mapping"),
        ("data.option.x=1", "data.option: unknown key; did you mean 'options'?"),
        (
            "methods.focl.options.gamma=1",
            "the recipe has no method 'focl'; did you mean 'focal'? (known: 'focal', 'drs')",
        ),
        ("methods.new=null", "the recipe has no method 'new' (known: 'focal', 'drs')"),
        (
            "methods.new={}",
            "methods.new: method 'new' is declared but no stage, calibration or adaptation uses it; name it in a "
            "stage's methods, or remove it (with extends: `new: null`)",
        ),
        ("stages.joint.methods-=ofa", "'stages.joint.methods' has no 'ofa' to take away; there: 'focal', 'drs'"),
        ("calibrate-=ofa", "'calibrate' has no 'ofa' to take away"),
        (
            "stages.tune.methods+=drs",
            "the recipe has no stage 'tune'; did you mean 'finetune'? (known: 'joint', 'finetune')",
        ),
        ("name+=1", "'name' is 'base', not a list"),
        ("sed+=1", "a recipe has no key 'sed'; did you mean 'seed'?"),
        (
            "stages.tune={epochs: 1}",
            "the recipe has no stage 'tune'; did you mean 'finetune'? (known: 'joint', 'finetune')",
        ),
        (
            "stages.tune.epochs=1",
            "the recipe has no stage 'tune'; did you mean 'finetune'? (known: 'joint', 'finetune')",
        ),
        (
            "stages.new={before: new, epochs: 1, optimizer: {lr: 1}}",
            "stages.new.before: there is no other stage 'new' (known: 'joint', 'finetune')",
        ),
        ("stages.2.epochs=1", "the recipe has no stage '2' (known: 'joint', 'finetune')"),
        ("stages.joint.methods.2=drs", "'stages.joint.methods' has no entry '2'; it has 2 entries"),
        ("stages.joint.optimizer.lr=-1", "stages.joint.optimizer.lr: should be greater than 0, not -1"),
        ("data.options.a=${x}", "data.options.a: cannot interpolate '${x}'; only ${env:NAME} is known"),
    ],
)
def test_bad_set(text, message):
    assert refused("base.yaml", [text]) == f"--set {text}: {message}"


def test_interpolation(monkeypatch):
    monkeypatch.setenv("A", "1e3")
    monkeypatch.setenv("B", "a: b")
    monkeypatch.setenv("BAD", "${env:A}")
    data = "data: {use: x, options: {a: '${env:A}', b: ['<${env:A}/${env:B}>'], c: $A}}\n"
    write("r.yaml", BASE.replace(BASE.splitlines()[2] + "\n", data))
    loaded = load_recipe("r.yaml")
    assert loaded.source["data"]["options"] == {"a": "1e3", "b": ["<1e3/a: b>"], "c": "$A"}
    for text, message in [
        (
            "${env:LTCORE_UNSET}/x",
            "the environment variable 'LTCORE_UNSET' is not set; set it, or pass --set data.options.b.0=VALUE",
        ),
        ("${oc.env:A}", "cannot interpolate '${oc.env:A}'; only ${env:NAME} is known"),
        ("${env:A", "cannot interpolate '${env:A'; only ${env:NAME} is known"),
        ("${}", "cannot interpolate '${}'; only ${env:NAME} is known"),
        (
            "${env:BAD}",
            "the environment variable 'BAD' holds '${' or bytes that are not UTF-8: '${env:A}'",
        ),
    ]:
        write("r.yaml", BASE.replace("/data", f"/data, b: ['{text}']"))
        assert refused("r.yaml") == f"r.yaml:3: data.options.b.0: {message}"
        assert load_recipe("r.yaml", ["data.options.b=1"]).source["data"]["options"]["b"] == 1


def test_a_dumped_recipe_loads_to_the_same(monkeypatch):
    monkeypatch.setenv("ROOT", "off")
    write("child.yaml", "extends: base.yaml\ndata: {options: {root: '${env:ROOT}', n: '1e3'}}\n")
    loaded = load_recipe("child.yaml", ["stages.joint.cache=views:2"], seed=4)
    write("run/recipe.yaml", dump_yaml(loaded.source))
    again = load_recipe("run/recipe.yaml")
    assert again.source == loaded.source and again.recipe == loaded.recipe
    assert again.recipe.name == "child"


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    depth: int = Field(default=1, multiple_of=2)


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    max_margin: float = Field(default=0.5, ge=0, lt=1)
    scale: float | None = None
    tap: Literal["maps", "pooled"] = "maps"
    mode: int | Literal["auto"] = "auto"
    width: int | list[int] = 3
    pair: tuple[int, int] = (1, 2)
    colour: Colour = Colour.RED
    path: Path = Path("x")
    inner: Inner = Inner()
    inners: dict[str, Inner | None] = {}
    label: str = Field(default="a", pattern="^[a-z]+$", max_length=3)
    items: Annotated[list[int], Field(max_length=2)] = []

    @model_validator(mode="after")
    def _check(self):
        if self.scale == 7:
            raise ValueError("scale 7 is unlucky")
        return self


class Needy(BaseModel):
    needed: int


def options_of(text, options=Options):
    write("r.yaml", BASE.replace("{options: {gamma: 2}}", f"\n    options:\n      {text}"))
    return load_recipe("r.yaml").validate_options(options, ("methods", "focal", "options"), "method 'focal', x 0.1")


def test_options():
    found = options_of("{max_margin: 0, scale: 3, width: [1], pair: [3, 4], colour: blue, path: /y, inners: {a: {}}}")
    assert (found.max_margin, found.scale, found.width, found.pair) == (0.0, 3.0, [1], (3, 4))
    assert (found.colour, found.path, found.inners) == (Colour.BLUE, Path("/y"), {"a": Inner()})


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("max_margn: 1", ".max_margn", "unknown option; did you mean 'max_margin'?"),
        ("inner: {depht: 2}", ".inner.depht", "unknown option; did you mean 'depth'?"),
        ("inners: {a: {zz: 2}}", ".inners.a.zz", "unknown option; known: 'depth'"),
        ("inner: {depth: 3}", ".inner.depth", "should be a multiple of 2, not 3"),
        ("max_margin: 1", ".max_margin", "should be less than 1, not 1"),
        ("scale: big", ".scale", "should be a number, not 'big'"),
        ("tap: pool", ".tap", "should be one of 'maps', 'pooled', not 'pool'; did you mean 'pooled'?"),
        ("mode: aut", ".mode", "should be a whole number or 'auto', not 'aut'; did you mean 'auto'?"),
        ("width: x", ".width", "should be a whole number or a list, not 'x'"),
        ("width: [x]", ".width", "should be a whole number, not a list"),
        ("pair: 3", ".pair", "should be a list, not 3"),
        ("colour: bleu", ".colour", "should be one of 'red', 'blue', not 'bleu'; did you mean 'blue'?"),
        ("path: 3", ".path", "should be text, not 3; put it in quotes"),
        ("label: A", ".label", "should match ^[a-z]+$, not 'A'"),
        ("label: abcd", ".label", "should have at most 3 characters, not 4"),
        ("items: [1, 2, 3]", ".items", "should have at most 2 values, not 3"),
        ("scale: 7", "", "scale 7 is unlucky"),
    ],
)
def test_bad_options(text, name, message):
    with pytest.raises(RecipeError) as caught:
        options_of(text)
    line = str(caught.value).splitlines()[0]
    assert line == f"r.yaml:{8 if name else 7}: methods.focal.options{name}: {message} (method 'focal', x 0.1)"


def test_a_missing_option_is_placed_where_it_would_stand():
    loaded = load_recipe("base.yaml")
    for method, line in [("focal", 6), ("drs", 7)]:
        with pytest.raises(RecipeError) as caught:
            loaded.validate_options(Needy, ("methods", method, "options"), "w")
        assert f"base.yaml:{line}: methods.{method}.options.needed: missing; it is required (w)" in str(caught.value)
    assert loaded.validate_options(Options, ("methods", "drs", "options"), "w") == Options()


def test_all_problems_are_told():
    with pytest.raises(RecipeError) as caught:
        options_of("{max_margin: 2, scal: 3}")
    assert str(caught.value).splitlines() == [
        "r.yaml:8: methods.focal.options.max_margin: should be less than 1, not 2 (method 'focal', x 0.1)",
        "r.yaml:8: methods.focal.options.scal: unknown option; did you mean 'scale'? (method 'focal', x 0.1)",
    ]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("aZ0 {}$:=\n\u2028", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.$<", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(["data", "methods", "stages", "calibrate", "seed", "stages.joint.schedule", "data.options.x"]),
    plain,
)
def test_whatever_is_set_loads_or_is_a_recipe_error(path, value):
    text = json.dumps(value) if not isinstance(value, float) or math.isfinite(value) else "." + str(value).lower()[-3:]
    try:
        load_recipe("base.yaml", [f"{path}={text}"])
    except RecipeError as error:
        assert all(line.startswith(("--set", "base.yaml:")) for line in str(error).split("\n"))


def test_another_choice_replaces_the_inherited_mapping():
    write("other.yaml", "extends: base.yaml\nbackbone: {use: timm}\nstages: {joint: {schedule: {name: cosine}}}")
    source = load_recipe("other.yaml").source
    assert source["backbone"] == {"use": "timm"}  # no option of the other backbone is left
    assert source["stages"][0]["schedule"] == {"name": "cosine"}


def test_a_whole_stage_of_a_new_name_comes_last():
    write("more.yaml", "extends: base.yaml\nstages: {third: {iterations: 5, optimizer: {lr: 0.1}}}")
    recipe = load_recipe("more.yaml").recipe
    assert [stage.name for stage in recipe.stages] == ["joint", "finetune", "third"]
    assert recipe.stages[2].iterations == 5


def test_a_new_stage_comes_before_the_one_that_it_names():
    stage = "{before: joint, epochs: 5, optimizer: {lr: 0.1}}"
    write("more.yaml", f"extends: base.yaml\nstages: {{first: {stage}, second: {stage}}}")
    loaded = load_recipe("more.yaml")
    assert [each.name for each in loaded.recipe.stages] == ["first", "second", "joint", "finetune"]
    assert "before" not in loaded.source["stages"][0]
    moved = load_recipe("base.yaml", [f"stages.finetune={stage}"]).recipe  # a whole stage replaces the one of its name
    assert [each.name for each in moved.stages] == ["finetune", "joint"]


def test_a_line_break_in_a_value_stays_in_its_message():
    message = refused("base.yaml", ['calibrate=["a\\nb"]'])
    assert message.endswith("calibrate.0: 'a\\nb' is not one of the recipe's methods; known: 'focal', 'drs'")
