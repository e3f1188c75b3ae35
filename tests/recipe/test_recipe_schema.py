"""Every mistake in a recipe: one line with file, line, path, what is wrong and the nearest guess."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from ltcore.contract.recipe import Published
from ltcore.errors import RecipeError
from ltcore.recipe import Recipe, load_recipe

GOOD = """\
data: {use: digits_lt, holdout: 2}
backbone:
  use: mlp
  options: {width: 8}
methods:
  focal: {options: {gamma: 2}}
  tail: {use: tau_norm}
stages:
  - name: joint
    epochs: 3
    methods: [focal]
    optimizer: {lr: 1e-1, momentum: 0.9}
    schedule: {name: cosine}
  - name: finetune
    iterations: 10
    trainable: [classifier]
    optimizer: {lr: 1}
calibrate: [tail]
"""


def load(text, **kwargs):
    Path("r.yaml").write_text(text, encoding="utf-8")
    return load_recipe("r.yaml", **kwargs)


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_good_recipe():
    loaded = load(GOOD, seed=3)
    recipe = loaded.recipe
    assert (recipe.name, recipe.seed, recipe.device, recipe.data.holdout) == ("r", 3, "auto", 2)
    joint, finetune = recipe.stages
    assert joint.optimizer.lr == 0.1 and joint.optimizer.model_extra == {"momentum": 0.9}
    assert joint.schedule.name == "cosine" and finetune.schedule.name == "constant"
    assert (joint.epochs, finetune.iterations, finetune.trainable) == (3, 10, ["classifier"])
    assert type(finetune.optimizer.lr) is float
    assert list(loaded.source) == ["name", "seed", "data", "backbone", "methods", "stages", "calibrate"]
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 4


@pytest.mark.parametrize(("cache", "views"), [("off", None), ("eval", 0), ("views:1", 1), ("views:12", 12)])
def test_cache(cache, views):
    assert load(GOOD.replace("epochs: 3", f"epochs: 3\n    cache: {cache}")).recipe.stages[0].cache_views == views


KNOWN = (
    "'name', 'description', 'published', 'seed', 'device', 'threads', 'data', 'backbone', 'methods', 'stages', "
    "'calibrate', 'unsure', 'select'"
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # unknown and missing keys
        ("calibrate:", "calibrte:", "r.yaml:18: calibrte: unknown key; did you mean 'calibrate'?"),
        (
            "calibrate:",
            "zzz:",
            f"r.yaml:18: zzz: unknown key; known: {KNOWN}, 'diagnostics', 'checkpoint_seconds', 'eval_batch_size', "
            "'sync_batch_norm'",
        ),
        ("{options: {gamma: 2}}", "{gamma: 2}", "r.yaml:6: methods.focal.gamma: unknown key; known: 'use', 'options'"),
        ("use: digits_lt, ", "", "r.yaml:1: data.use: missing; it is required"),
        ("  use: mlp\n", "", "r.yaml:2: backbone.use: missing; it is required"),
        ("- name: joint\n    epochs: 3", "- epochs: 3", "r.yaml:9: stages.0.name: missing; it is required"),
        ("    optimizer: {lr: 1}\n", "", "r.yaml:14: stages.finetune.optimizer: missing; it is required"),
        ("lr: 1}", "name: sgd}", "r.yaml:17: stages.finetune.optimizer.lr: missing; it is required"),
        # wrong types
        ("lr: 1}", "lr: abc}", "r.yaml:17: stages.finetune.optimizer.lr: should be a number, not 'abc'"),
        ("lr: 1}", "lr: true}", "r.yaml:17: stages.finetune.optimizer.lr: should be a number, not true"),
        ("lr: 1}", "lr: '1'}", "r.yaml:17: stages.finetune.optimizer.lr: should be a number, not '1'"),
        ("lr: 1}", "lr: .nan}", "r.yaml:17: stages.finetune.optimizer.lr: should be a finite number, not nan"),
        ("lr: 1}", "lr: 0}", "r.yaml:17: stages.finetune.optimizer.lr: should be greater than 0, not 0"),
        ("epochs: 3", "epochs: 3.5", "r.yaml:10: stages.joint.epochs: should be a whole number, not 3.5"),
        ("epochs: 3", "epochs: true", "r.yaml:10: stages.joint.epochs: should be a whole number, not true"),
        ("epochs: 3", "epochs: -1", "r.yaml:10: stages.joint.epochs: should be greater than 0, not -1"),
        ("holdout: 2", "holdout: -1", "r.yaml:1: data.holdout: should be at least 0, not -1"),
        ("use: mlp", "use: 5", "r.yaml:3: backbone.use: should be text, not 5; put it in quotes"),
        ("{use: tau_norm}", "", "r.yaml:7: methods.tail: should be a mapping, not null; write {} for an empty one"),
        ("{use: tau_norm}", "[1]", "r.yaml:7: methods.tail: should be a mapping, not a list"),
        ("[focal]", "focal", "r.yaml:11: stages.joint.methods: should be a list, not 'focal'"),
        ("[focal]", "[focal, 3]", "r.yaml:11: stages.joint.methods.1: should be text, not 3; put it in quotes"),
        (
            "holdout: 2",
            "transform: {flip: off}",
            "r.yaml:1: data.transform.flip: should be true or false, not 'off'",
        ),
        # choices
        (
            "epochs: 3",
            "epochs: 3\n    precision: bf6",
            "r.yaml:11: stages.joint.precision: should be one of 'auto', 'fp32', 'tf32', 'bf16', not 'bf6'; "
            "did you mean 'bf16'?",
        ),
        (
            "epochs: 3",
            "epochs: 3\n    sampler: balanced",
            "r.yaml:11: stages.joint.sampler: should be one of 'instance', 'class_balanced', 'square_root', "
            "not 'balanced'; did you mean 'class_balanced'?",
        ),
        (
            "name: cosine",
            "name: cosin",
            "r.yaml:13: stages.joint.schedule.name: should be one of 'constant', 'step', 'multistep', 'cosine', "
            "not 'cosin'; did you mean 'cosine'?",
        ),
        ("{name: cosine}", "{min_lr: 0}", "r.yaml:13: stages.joint.schedule.name: missing; it is required"),
        (
            "{name: cosine}",
            "{name: step, every: 3, gama: 2}",
            "r.yaml:13: stages.joint.schedule.gama: unknown key; did you mean 'gamma'?",
        ),
        ("{name: cosine}", "{name: step}", "r.yaml:13: stages.joint.schedule.every: missing; it is required"),
        (
            "{name: cosine}",
            "{name: multistep, milestones: [2, 1]}",
            "r.yaml:13: stages.joint.schedule.milestones: should increase from each milestone to the next, not [2, 1]",
        ),
        (
            "{name: cosine}",
            "{name: multistep, milestones: []}",
            "r.yaml:13: stages.joint.schedule.milestones: should have at least 1 value, not 0",
        ),
        ("data:", "device: gpu\ndata:", "r.yaml:1: device: should be auto, cpu, cuda or cuda:N, not 'gpu'"),
        (
            "epochs: 3",
            "epochs: 3\n    cache: views:0",
            "r.yaml:11: stages.joint.cache: should be off, eval or views:V with V at least 1, not 'views:0'",
        ),
        # names
        (
            "name: joint",
            "name: Joint",
            "r.yaml:9: stages.Joint.name: a name is made of a-z, 0-9 and _, and begins with a letter",
        ),
        (
            "  tail:",
            "  Tail:",
            "r.yaml:7: methods.Tail: a name is made of a-z, 0-9 and _, and begins with a letter",
        ),
        (
            "  tail:",
            "  backbone:",
            "r.yaml:7: methods.backbone: the name 'backbone' is taken by a part of the model; choose another and say "
            "'use: backbone'",
        ),
        (
            "data:",
            "name: a/b\ndata:",
            "r.yaml:1: name: the name is also a folder's: no / or \\, no dot at the start, not empty; got 'a/b'",
        ),
        ("name: finetune", "name: joint", "r.yaml:14: stages.joint.name: another stage has the name 'joint' already"),
        # what belongs together
        ("    epochs: 3\n", "", "r.yaml:9: stages.joint: give the stage's length: either epochs or iterations"),
        (
            "epochs: 3",
            "epochs: 3\n    iterations: 5",
            "r.yaml:9: stages.joint: give either epochs or iterations, not both",
        ),
        (
            "[focal]",
            "\n    - focl",
            "r.yaml:12: stages.joint.methods.0: 'focl' is not one of the recipe's methods; did you mean 'focal'?\n"
            "r.yaml:6: methods.focal: method 'focal' is declared but no stage, calibration or adaptation uses it; "
            "name it in a stage's methods, or remove it (with extends: `focal: null`)",
        ),
        ("[focal]", "[focal, focal]", "r.yaml:11: stages.joint.methods.1: 'focal' is named twice"),
        (
            "[tail]",
            "[tail, xyz]",
            "r.yaml:18: calibrate.1: 'xyz' is not one of the recipe's methods; known: 'focal', 'tail'",
        ),
        (
            "trainable: [classifier]",
            "trainable: []",
            "r.yaml:16: stages.finetune.trainable: should have at least 1 value, not 0",
        ),
        (
            "epochs: 3",
            "epochs: 3\n    auxiliary_weights:\n      focl/x: 1\n      focal: 2",
            "r.yaml:12: stages.joint.auxiliary_weights.focl/x: the stage has no method 'focl'; did you mean 'focal'?\n"
            "r.yaml:13: stages.joint.auxiliary_weights.focal: the key should be METHOD/TERM, such as safa/cycle",
        ),
        (
            "holdout: 2",
            "imbalance: {kind: exponental}",
            "r.yaml:1: data.imbalance.kind: should be one of 'none', 'exponential', 'step', 'balanced_like', 'counts', "
            "not 'exponental'; did you mean 'exponential'?",
        ),
        # several problems, one line each
        (
            "epochs: 3\n    methods: [focal]",
            "epoch: 3\n    classifier: kep",
            "r.yaml:11: stages.joint.classifier: should be one of 'keep', 'rebuild', not 'kep'; did you mean 'keep'?\n"
            "r.yaml:10: stages.joint.epoch: unknown key; did you mean 'epochs'?",
        ),
    ],
)
def test_a_bad_recipe_is_told_what_is_wrong_and_where(old, new, message):
    assert old in GOOD
    with pytest.raises(RecipeError) as caught:
        load(GOOD.replace(old, new, 1))
    assert str(caught.value) == message


def test_figures_of_a_paper_are_those_that_it_prints():
    few = Published(value=42.0, many=60.5, few=0, sd=0.3, source="Table 1")
    assert list(few.figures().items()) == [("top1", 42.0), ("many", 60.5), ("few", 0.0)]
    every = Published(value=1, top5=2, many=3, medium=4, few=5, source="Table 1")
    assert list(every.figures().items()) == [("top1", 1), ("top5", 2), ("many", 3), ("medium", 4), ("few", 5)]


def test_no_stages():
    head = GOOD[: GOOD.index("methods:")]
    for stages, message in [
        ("stages: []", "r.yaml:5: stages: the list of stages is empty; a recipe needs at least one"),
        ("stages: {a: {}}", "r.yaml:5: stages: should be a list; changes by stage name need 'extends'"),
        ("seed: 1", "r.yaml:1: stages: missing; it is required"),
    ]:
        with pytest.raises(RecipeError) as caught:
            load(head + stages)
        assert str(caught.value) == message


def test_the_seed_of_the_command_line_is_checked():
    with pytest.raises(RecipeError) as caught:
        load(GOOD, seed=-1)
    assert str(caught.value) == "--seed -1: seed: should be at least 0, not -1"


def test_every_key_is_described_in_the_json_schema():
    schema = Recipe.model_json_schema()
    for model in [schema, *schema["$defs"].values()]:
        for name, field in model["properties"].items():
            assert field.get("description"), (model["title"], name)


def test_recipes_are_read_without_torch():
    code = "import sys, ltcore.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
