"""``optimizer.groups``: who is in which group, what is refused and when, and what a step does."""

import io
import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ltcore import Method, hookimpl
from ltcore.contract.model import matches
from ltcore.errors import RecipeError
from ltcore.files.checkpoint import load
from ltcore.networks.optimizers import (
    build_optimizer,
    check_optimizer,
    group_parameters,
    parameter_group,
    set_learning_rate,
)
from ltcore.plan.plan import make_plan
from ltcore.plan.text import describe, render
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.recipe.yaml_source import dump_yaml
from ltcore.training.execute import execute

# ---------------------------------------------------------------- sorting parameters, and their rates

NAMES = ["backbone.conv1.weight", "backbone.layer1.0.conv1.weight", "backbone.layer1.0.bn1.bias", "classifier.weight"]
PATTERNS = ["backbone", "backbone.layer1", "*.bias", "classifier.weight", "backbone.*.weight", "safa", "*"]


@given(st.lists(st.sampled_from(NAMES), unique=True), st.lists(st.sampled_from(PATTERNS), unique=True))
def test_every_parameter_is_in_one_group_that_of_the_first_match(names, patterns):
    found = group_parameters(names, patterns)
    assert sorted([*found.rest, *(name for held in found.held.values() for name in held)]) == sorted(names)
    assert list(found.held) == patterns
    for name in names:
        matching = [pattern for pattern in patterns if matches(name, pattern)]
        assert [pattern for pattern in patterns if name in found.held[pattern]] == matching[:1]
        assert (name in found.rest) == (not matching)
        for pattern in matching[1:]:
            assert name in found.elsewhere[pattern][matching[0]]


def test_an_overlap_is_told():
    found = group_parameters([f"backbone.{i}" for i in range(5)] + ["head"], ["backbone", "*"])
    assert found.held["*"] == ["head"] and found.overlaps() == [
        "optimizer group '*' leaves backbone.0, backbone.1, backbone.2 and 2 more to 'backbone', which stands before it"
    ]


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
def test_one_factor_scales_all_rates(name):
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    groups = [
        parameter_group(weights[:1], None, {}),
        parameter_group(weights[1:2], 0.03, {"weight_decay": 0.5}),
        parameter_group(weights[2:], None, {"weight_decay": 0.25}),
    ]
    optimizer = build_optimizer(name, groups, 0.1, {"weight_decay": 0.0}, "cpu")
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.5, 0.25]
    for lr in (0.1, 0.05, 1 / 3, 1e-9):
        set_learning_rate(optimizer, lr)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates[0] == rates[2] == lr  # bit for bit
        assert rates[1] == pytest.approx(0.3 * lr, rel=1e-12)
    set_learning_rate(optimizer, 0.1)
    assert optimizer.param_groups[1]["lr"] == 0.03


def test_sgd_with_groups_by_hand():
    first, second = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([2.0]))
    groups = [parameter_group([first], None, {}), parameter_group([second], 0.01, {"momentum": 0.5, "weight_decay": 0})]
    optimizer = build_optimizer("sgd", groups, 0.1, {"momentum": 0.9, "weight_decay": 0.5}, "cpu")
    state = [[2.0, 0.0, 0.1, 0.9, 0.5], [2.0, 0.0, 0.01, 0.5, 0.0]]
    for factor in (1.0, 0.5, 0.1):
        set_learning_rate(optimizer, 0.1 * factor)
        first.grad, second.grad = torch.ones(1), torch.ones(1)
        optimizer.step()
        for row in state:
            value, velocity, lr, momentum, decay = row
            row[1] = momentum * velocity + 1 + decay * value
            row[0] = value - lr * factor * row[1]
    assert [first.item(), second.item()] == pytest.approx([row[0] for row in state])


def test_lists_of_a_group_become_tuples():
    assert parameter_group([], None, {"betas": [0.5, 0.9]}) == {"params": [], "betas": (0.5, 0.9)}


@pytest.mark.parametrize(
    ("name", "group", "message"),
    [
        ("sgd", {"momentun": 0.9}, "optimizer 'sgd' has no option 'momentun'; did you mean 'momentum'?"),
        ("sgd", {"weight_decay": "1e-4"}, "optimizer 'sgd': weight_decay is the text '1e-4'"),
        ("sgd", {"fused": True}, "optimizer 'sgd' has one fused for all parameters; set it outside of the groups"),
    ],
)
@pytest.mark.parametrize("values", [False, True])
def test_options_of_a_group(name, group, message, values):
    with pytest.raises(RecipeError, match=re.escape(message)):
        check_optimizer(name, {"momentum": 0.9}, values, group)


def test_values_of_a_group_are_checked_with_the_optimizers_own():
    check_optimizer("sgd", {"momentum": 0.9}, True, {"nesterov": True})
    for options, group, message in (
        ({}, {"nesterov": True}, "Nesterov momentum requires a momentum"),
        ({"momentum": 0.9}, {"momentum": -1}, "Invalid momentum value"),
    ):
        with pytest.raises(RecipeError, match=message):
            check_optimizer("sgd", options, True, group)


# ---------------------------------------------------------------- the plan


class Own(Method):
    """An auxiliary loss with modules of its own."""

    auxiliary = ("size",)

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.layer, self.scale = nn.Linear(16, 2), nn.Parameter(torch.ones(2))

    @hookimpl
    def auxiliary_losses(self, features) -> dict[str, Tensor]:
        return {"size": (self.scale * self.layer(features.features)).square().mean()}


class Built(Method):
    """A classifier of two layers."""

    @hookimpl
    def build_classifier(self, feature_dim: int, num_classes: int) -> nn.Module:
        class Two(nn.Sequential):
            @property
            def weight(self):
                return self[1].weight @ self[0].weight

            bias = None

        return Two(nn.Linear(feature_dim, 3, bias=False), nn.Linear(3, num_classes, bias=False))


RECIPE = """\
data: {use: synthetic, options: {class_counts: [24, 16, 8, 4], image_size: 8, test_per_class: 4}}
backbone: {use: cifar_resnet, options: {depth: 8, width: 4}}
checkpoint_seconds: 0
METHODS
stages:
  - name: s
    epochs: 2
    batch_size: 16
    STAGE
    optimizer:
      name: sgd
      lr: 0.1
      momentum: 0.9
      groups:
        GROUPS
"""


@pytest.fixture
def recipe(offer_methods, tmp_path):
    """Write and load `RECIPE`: groups by pattern, further lines of the stage, the stage's methods, whole text edits."""
    offer_methods(own=Own, built=Built)

    def make(groups, *stage, methods=(), edits=(), name="r"):
        text = RECIPE.replace("METHODS", f"methods: {{{', '.join(f'{m}: {{}}' for m in methods)}}}")
        lines = [*stage, f"methods: [{', '.join(methods)}]"]
        text = text.replace("    STAGE\n", "".join(f"    {line}\n" for line in lines))
        text = text.replace(
            "        GROUPS\n", "".join(f"        {json.dumps(k)}: {json.dumps(v)}\n" for k, v in groups.items())
        )
        text = text if groups else text.replace("      groups:\n", "")
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return load_recipe(path)

    return make


@pytest.mark.parametrize(
    ("groups", "stage", "methods", "line", "message"),
    [
        ({"backbon": {}}, (), (), 15, "optimizer group 'backbon' matches nothing; did you mean 'backbone'? the stage"),
        ({"backbone": {}, "qqqq": {}}, (), (), 16, "group 'qqqq' matches nothing; the stage trains 'backbone', 'class"),
        (
            {"classifier": {}, "backbone.layer1": {}},
            ("trainable: [classifier]",),
            (),
            17,
            "optimizer group 'backbone.layer1' matches nothing that trains; the stage trains 'classifier'",
        ),
        (
            {"backbone": {"lr": 0.01}, "backbone.layer1": {"lr": 0.02}},
            (),
            (),
            16,
            "optimizer group 'backbone.layer1' is empty: all that it matches is in the group of 'backbone', which "
            "stands before it; put 'backbone.layer1' first",
        ),
        # A method of the stage that trains nothing of its own, and one that is not in the stage.
        ({"own": {}}, ("trainable: [classifier]",), ("own",), 16, "group 'own' matches nothing; the stage trains"),
        ({"own": {}}, (), (), 15, "group 'own' matches nothing"),
        ({"classifier.0": {}}, (), (), 15, "group 'classifier.0' matches nothing"),
        ({"backbone": {"momentun": 1}}, (), (), 15, "group 'backbone': optimizer 'sgd' has no option 'momentun'; did"),
        ({"backbone": {"momentum": -1}}, (), (), 15, "group 'backbone': optimizer 'sgd' cannot be built: Invalid mom"),
    ],
)
def test_the_plan_refuses_with_file_and_line(recipe, monkeypatch, groups, stage, methods, line, message):
    monkeypatch.setattr("ltcore.training.data.prepare", lambda *_: pytest.fail("data was read"))
    loaded = recipe(groups, *stage, methods=methods)
    with pytest.raises(
        RecipeError, match=rf"r\.yaml:{line}: stage 's': {re.escape(message)}|{re.escape(message)}"
    ) as e:
        make_plan(loaded)
    assert f"r.yaml:{line}: stage 's': " in str(e.value)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("{lr: 0}", "should be greater than 0, not 0"),
        ("{lr: fast}", "should be a number, not 'fast'"),
        ("3", "a mapping"),
    ],
)
def test_reading_refuses(recipe, group, message):
    with pytest.raises(RecipeError, match=rf"r\.yaml:15: stages\.s\.optimizer\.groups\.backbone.*{re.escape(message)}"):
        recipe({"backbone": {}}, edits=[('"backbone": {}', f"backbone: {group}")])


@pytest.mark.parametrize(
    ("groups", "stage", "methods"),
    [
        ({"own.layer": {}}, ("trainable: [own]",), ("own",)),
        ({"own.lay": {}}, ("trainable: [own]",), ("own",)),  # refused by the run
        ({"*.scale": {}}, ("trainable: ['own.*']",), ("own",)),
        ({"classifier.1": {}, "classifier": {}}, ("trainable: [classifier]",), ("built",)),
        ({"*.bias": {}}, (), ()),
    ],
)
def test_the_plan_waits_for_what_methods_make(recipe, groups, stage, methods):
    make_plan(recipe(groups, *stage, methods=methods))


def test_a_trainable_part_of_a_classifier_that_an_earlier_stage_built(recipe):
    second = "  - {name: t, epochs: 1, trainable: [classifier.1], optimizer: {lr: 1, groups: {classifier.1: {}}}}\n"
    loaded = recipe({"backbone": {}}, methods=["built"])
    path = loaded.path
    path.write_text(path.read_text() + second)
    make_plan(load_recipe(path))
    path.write_text(path.read_text().replace("name: t,", "name: t, classifier: rebuild,"))
    with pytest.raises(RecipeError, match=r"trainable 'classifier\.1' matches nothing"):
        make_plan(load_recipe(path))


def test_the_plan_shows_groups(recipe):
    plan = make_plan(recipe({"backbone.layer1": {"lr": 0.01, "weight_decay": 0.5}, "backbone": {}}))
    described = describe(plan)
    assert json.loads(json.dumps(described))["stages"][0]["optimizer"] == {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "groups": {
            "backbone.layer1": {"arguments": {"lr": 0.01, "weight_decay": 0.5}, "without": []},
            "backbone": {"arguments": {}, "without": ["backbone.layer1"]},
        },
    }
    shown = render(described).splitlines()
    at = shown.index("  optimizer   sgd lr=0.1 momentum=0.9")
    assert shown[at + 1 : at + 3] == [
        "    group backbone.layer1: lr=0.01 weight_decay=0.5",
        "    group backbone: as the others, without what 'backbone.layer1' has",
    ]
    assert "groups" not in render(describe(make_plan(recipe({}))))


def test_extends_adds_after_the_parents_and_the_order_is_kept(recipe, tmp_path):
    recipe({"classifier.bias": {}}, name="parent")
    child = tmp_path / "child.yaml"
    child.write_text(
        "extends: parent.yaml\nstages: {s: {optimizer: {groups: {classifier: {lr: 1}, backbone: {lr: 2}}}}}\n"
    )
    loaded = load_recipe(child)
    assert list(loaded.recipe.stages[0].optimizer.groups) == ["classifier.bias", "classifier", "backbone"]
    (again := tmp_path / "again.yaml").write_text(dump_yaml(loaded.source))
    assert list(load_recipe(again).recipe.stages[0].optimizer.groups) == ["classifier.bias", "classifier", "backbone"]
    changed = load_recipe(child, ["stages.s.optimizer.groups={backbone.conv1: {lr: 0.5}}"])
    assert list(changed.recipe.stages[0].optimizer.groups) == ["backbone.conv1"]


# ---------------------------------------------------------------- the run


def run(loaded, out, resume=False):
    text = io.StringIO()
    result, path = execute(loaded, out, resume, Reporter(text))
    return result, load(path / "checkpoints" / "stage-0-s.safetensors")[0], path, text.getvalue()


@pytest.mark.parametrize(
    ("groups", "methods", "message"),
    [
        (
            {"own.lay": {}},
            ["own"],
            "r.yaml:16: stage 's': optimizer group 'own.lay' matches nothing; did you mean 'own",
        ),
        ({"classifier.2": {}}, ["built"], "r.yaml:16: stage 's': optimizer group 'classifier.2' matches nothing; did"),
        (
            {"classifier": {}, "classifier.1": {}},
            ["built"],
            "r.yaml:17: stage 's': optimizer group 'classifier.1' is empty: all that it matches is in the group of 'c",
        ),
    ],
)
def test_the_run_refuses_what_only_it_can_know(recipe, tmp_path, groups, methods, message):
    loaded = recipe(groups, f"trainable: [backbone, classifier{', own' if 'own' in methods else ''}]", methods=methods)
    with pytest.raises(RecipeError, match=re.escape(message)):
        run(loaded, tmp_path)


def test_a_methods_parameters_in_a_later_stage_are_looked_at_before_anything_is_trained(recipe, tmp_path):
    loaded = recipe({}, methods=["own"])
    later = "  - {name: t, epochs: 1, methods: [own], trainable: [own], optimizer: {lr: 1, groups: {own.wrong: {}}}}\n"
    loaded.path.write_text(loaded.path.read_text() + later)
    with pytest.raises(RecipeError, match=r"r\.yaml:14: stage 't': optimizer group 'own\.wrong' matches nothing"):
        run(load_recipe(loaded.path), tmp_path)
    assert not list(tmp_path.rglob("metrics.jsonl")) or not any(p.read_text() for p in tmp_path.rglob("metrics.jsonl"))


def test_groups_that_say_nothing_new_change_nothing(recipe, tmp_path):
    plain = run(recipe({}, name="plain"), tmp_path)
    for name, groups in {
        "empty": {"classifier": {}, "backbone.layer1": {}},
        "same": {"*": {"lr": 0.1, "momentum": 0.9}},
    }.items():
        result, tensors, _, _ = run(recipe(groups, name=name), tmp_path)
        assert result["stages"][0]["test"] == plain[0]["stages"][0]["test"]
        assert all(torch.equal(tensors[key], value) for key, value in plain[1].items())


def test_a_step_is_as_long_as_its_groups_rate(recipe, tmp_path, make_run):
    """The first step of plain SGD: the gradients are the same, so the ways are as the rates."""
    one = [("epochs: 2", "iterations: 1"), ("momentum: 0.9", "momentum: 0.0")]
    groups = {"classifier": {"lr": 0.02}, "backbone.layer2": {"weight_decay": 0.5}}
    plain, grouped = (run(recipe(g, name=n, edits=one), tmp_path)[1] for n, g in (("plain", {}), ("grouped", groups)))
    start = run(recipe({}, name="start", edits=[*one, ("lr: 0.1", "lr: 1.0e-30")]), tmp_path)[1]
    seen = set()
    for name, first in start.items():
        if name.endswith(("weight", "bias")):
            way, expected = grouped[name] - first, plain[name] - first
            if name.startswith("model/classifier"):
                expected = 0.2 * expected
            elif ".layer2." in name:
                expected = expected - 0.1 * 0.5 * first
            seen.add(name.split(".")[1])
            torch.testing.assert_close(way, expected, rtol=1e-4, atol=2e-8)
            assert name.endswith("bias") or not torch.equal(grouped[name], first)
    assert {"layer1", "layer2", "weight"} <= seen


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("{name: constant}", [1, 1, 1, 1]),
        ("{name: multistep, milestones: [2], gamma: 0.5, warmup_epochs: 1}", [1, 1, 0.5, 0.5]),
        ("{name: cosine, min_lr: 0.05, warmup_epochs: 2}", [0.5, 1, 1, 0.5 + 0.25]),
    ],
)
def test_the_schedule_scales_every_rate_and_the_log_has_the_own_one(recipe, tmp_path, monkeypatch, schedule, factors):
    seen = []
    step = torch.optim.SGD.step

    def watched(self, *args):
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    edits = [("epochs: 2", "epochs: 4"), ("batch_size: 16", f"batch_size: 52\n    schedule: {schedule}")]
    _, _, path, _ = run(recipe({"classifier": {"lr": 0.02}}, edits=edits), tmp_path)
    assert [rates[0] for rates in seen] == pytest.approx([0.1 * factor for factor in factors])
    assert [rates[1] for rates in seen] == pytest.approx([0.02 * factor for factor in factors])
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == [rates[0] for rates in seen]


def test_an_overlap_is_told_in_the_run(recipe, tmp_path):
    groups = {"classifier.1": {"lr": 0.01}, "classifier": {"lr": 0.02}}
    _, _, _, text = run(recipe(groups, methods=["built"]), tmp_path)
    assert text.count("optimizer group 'classifier' leaves classifier.1.weight to 'classifier.1'") == 1


class Stopped(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("saves", [1, 3, 6])
def test_a_stopped_run_goes_on_bit_for_bit(recipe, tmp_path, monkeypatch, optimizer, saves):
    from ltcore.files import checkpoint

    groups = {"classifier": {"lr": 0.02, "weight_decay": 0.1}, "backbone.layer1": {"lr": 0.3}, "own.scale": {}}
    edits = [("batch_size: 16", "batch_size: 16\n    schedule: {name: cosine, warmup_epochs: 1}")]
    if optimizer == "adamw":
        edits += [("name: sgd", "name: adamw"), ("momentum: 0.9", "betas: [0.8, 0.9]"), ("lr: 0.1", "lr: 0.01")]
        groups["classifier"]["betas"] = [0.5, 0.7]
    loaded = recipe(groups, "trainable: [backbone, classifier, own]", methods=["own"], edits=edits)
    whole, tensors, _, _ = run(loaded, tmp_path / "whole")
    save, count = checkpoint.save, 0

    def counted(*args):
        nonlocal count
        save(*args)
        count += 1
        if count == saves:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", counted)
        with pytest.raises(Stopped):
            run(loaded, tmp_path / "parts")
    result, found, _, text = run(loaded, tmp_path / "parts", resume=True)
    assert "going on from stage 1" in text
    assert result["stages"][0]["test"] == whole["stages"][0]["test"]
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], value) for key, value in tensors.items())
