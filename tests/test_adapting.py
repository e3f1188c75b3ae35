"""``backbone.adapt``: what methods add to the network, in the plan, in a run, and wherever a run is built again."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import ltcore
from ltcore import Backbone, Mergeable, Method, Options, hookimpl
from ltcore.errors import PluginError, RecipeError
from ltcore.export.deployed import merge
from ltcore.files import checkpoint
from ltcore.plan.adapting import adapted
from ltcore.plan.plan import make_plan
from ltcore.plan.text import describe, render
from ltcore.recipe.loading import load_recipe
from ltcore.training.selection import only_calibrates


class Side(nn.Conv2d, Mergeable):
    """A convolution with one of 1 x 1 beside it, which begins at zero."""

    def __init__(self, plain, value):
        sizes = plain.in_channels, plain.out_channels
        super().__init__(*sizes, 3, plain.stride, padding=1, bias=plain.bias is not None)
        self.weight, self.bias = plain.weight, plain.bias
        self.side = nn.Conv2d(*sizes, 1, bias=False)
        if value is not None:
            nn.init.constant_(self.side.weight, value)

    def forward(self, input):
        down, across = self.stride
        return super().forward(input) + self.side(input[:, :, ::down, ::across])

    def merged(self):
        plain = nn.Conv2d(self.in_channels, self.out_channels, 3, self.stride, padding=1, bias=self.bias is not None)
        plain.load_state_dict({k: v.clone() for k, v in self.state_dict().items() if k != "side.weight"})
        plain.weight[:, :, 1, 1] += self.side.weight[:, :, 0, 0]
        return plain


class SidesOptions(Options):
    value: float | None = 0.0
    under: str = ""


class Sides(Method[SidesOptions]):
    interface = "1.1"

    @hookimpl
    def adapt_backbone(self, backbone: Backbone) -> Backbone:
        for path, module in list(backbone.named_modules()):
            for name, layer in list(module.named_children()):
                wanted = f"{path}.{name}".startswith(self.options.under)
                if wanted and type(layer) is nn.Conv2d and layer.kernel_size == (3, 3):
                    setattr(module, name, Side(layer, self.options.value))
        return backbone


class Around(Backbone):
    """A network with a layer behind its pool, so that it is another object with other names."""

    net = "inner"

    def __init__(self, inner):
        super().__init__()
        self.inner, self.feature_dim, self.inner_taps = inner, inner.feature_dim, inner.inner_taps
        self.last = nn.Linear(self.feature_dim, self.feature_dim)

    spatial = False

    def forward_maps(self, images):
        return self.inner.forward_maps(images)

    def pool(self, maps):
        return self.last(self.inner.pool(maps))


class Wrapping(Method):
    @hookimpl
    def adapt_backbone(self, backbone: Backbone) -> Backbone:
        return Around(backbone)


class Refusing(Method):
    @hookimpl
    def adapt_backbone(self, backbone: Backbone) -> Backbone:
        raise RecipeError("this network has no attention; choose another")


class Nothing(Method):
    @hookimpl
    def adapt_backbone(self, backbone: Backbone) -> Backbone:
        return nn.Linear(2, 2)


class Reading(Method):
    """Draws in a stage from what core seeds."""

    @hookimpl
    def on_run_start(self) -> None:
        self.register_buffer("drawn", torch.randn(3))

    @hookimpl
    def adjust_logits(self, logits, context):
        return logits + 0.01 * torch.randn(logits.shape, generator=context.generator)


METHODS = {kind.__name__.lower(): kind for kind in (Sides, Wrapping, Refusing, Nothing, Reading)}
RESNET = {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}}
STAGE = {"epochs": 1, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.05}}


@pytest.fixture(autouse=True)
def offered(offer_methods):
    offer_methods(METHODS)


@pytest.fixture
def plan(write_recipe):
    def make(adapt, table=None, **stage):
        table = {name: {} for name in adapt} if table is None else table
        listed = {"backbone": {**RESNET, "adapt": adapt}, "methods": table}
        return make_plan(load_recipe(write_recipe(**listed, stages=[{"name": "s", **STAGE, **stage}])))

    return make


def parts(adapt, value=0.0, first=("backbone", "classifier"), second=("sides", "classifier")):
    """A recipe of two stages."""
    options = {"sides": {"options": {"value": value}}} if "sides" in adapt else {}
    common = {**STAGE, "methods": ["reading"]}
    return {
        "backbone": {**RESNET, **({"adapt": adapt} if adapt else {})},
        "methods": options | {"reading": {}},
        "stages": [
            {"name": "first", **common, "trainable": [*first]},
            {"name": "second", **common, "trainable": [*second]},
        ],
    }


# The plan


def test_the_plan_sees_what_is_added_and_whose_it_is(plan):
    made = plan(["sides", "more"], {"sides": {"options": {"under": "layer1"}}, "more": {"use": "sides"}})
    whose = made.skeleton.added_by
    assert {name.split(".")[0] for name, adapter in whose.items() if adapter == "sides"} == {"layer1"}
    assert {name.split(".")[0] for name, adapter in whose.items() if adapter == "more"} == {"conv1", "layer2", "layer3"}
    assert all(name.endswith("side.weight") for name in whose) and made.skeleton.conv1.weight.is_meta
    described = describe(made)["backbone"]["adapt"]
    sizes = {name: parameter.numel() for name, parameter in made.skeleton.named_parameters()}
    assert [(row["method"], row["parameters"]) for row in described] == [
        (key, sum(sizes[name] for name, adapter in whose.items() if adapter == key)) for key in ("sides", "more")
    ]
    assert "adapted by sides (ltcore-tests 0.0): " in render(describe(made))


@pytest.mark.parametrize(
    ("trainable", "count"),
    [
        (["sides"], 7),
        (["backbone.*.side.weight"], 7),
        (["backbone.conv1.side"], 1),
        (["sides.layer3"], 2),
        (["sides.layer*.conv2"], 3),
        (["backbone.layer3.0.conv1.weight", "sides.conv1.*"], 2),
    ],
)
def test_trainable_names_an_adapters_parameters_in_two_ways(plan, make_run, trainable, count):
    stage = {"name": "s", **STAGE, "trainable": [*trainable, "classifier"]}
    run = make_run(backbone={**RESNET, "adapt": ["sides"]}, methods={"sides": {}}, stages=[stage])
    run.train()
    model = run.assembly.model
    seen = [name for name, p in model.backbone.named_parameters() if p.requires_grad]
    assert len(seen) == count
    planned = plan(["sides"], trainable=[*trainable, "classifier"])
    sizes = {name: p.numel() for name, p in model.backbone.named_parameters()}
    assert describe(planned)["stages"][0]["trained_backbone_parameters"] == sum(sizes[name] for name in seen)


def test_an_adapter_that_no_stage_trains_is_warned_of(plan):
    assert plan(["sides"], trainable=["sides.layer1", "classifier"]).warnings == ()
    assert plan(["sides"]).warnings == ()  # backbone, which it is a part of
    (warning,) = plan(["sides"], trainable=["classifier"]).warnings
    assert "r.yaml:2: 'sides' has put parameters into the network, and no stage trains them: they stay as" in warning


def test_a_group_of_the_optimiser_is_an_adapters(make_run, look_on):
    groups = {"sides": {"lr": 0.5}, "backbone": {"lr": 0.25}}
    seen = {}
    look_on(stage_started=lambda run, loop: seen.update(groups=loop.optimizer.param_groups))
    stage = {"name": "s", **STAGE, "optimizer": {"name": "sgd", "lr": 0.05, "groups": groups}}
    run = make_run(backbone={**RESNET, "adapt": ["sides"]}, methods={"sides": {}}, stages=[stage])
    run.execute()
    counts = [len(group["params"]) for group in seen["groups"]]
    assert counts == [2, 7, len([*run.assembly.model.backbone.parameters()]) - 7]


@pytest.mark.parametrize(
    ("adapt", "methods", "stage", "message"),
    [
        (
            ["reading"],
            {"reading": {}},
            {},
            "'reading' @ does not adapt the backbone (hook adapt_backbone); name it in a",
        ),
        (
            ["refusing"],
            None,
            {},
            "backbone 'cifar_resnet' cannot be adapted (hook adapt_backbone): 'refusing' @: this net",
        ),
        (
            ["sides"],
            None,
            {"methods": ["sides"]},
            "does nothing in a stage; if it calibrates, name it in 'calibrate'; if it",
        ),
        (
            ["sides"],
            None,
            {"trainable": ["sides", "classifier"], "cache": "eval"},
            "needs a frozen backbone; 'sides' tr",
        ),
        (["sides"], None, {"trainable": ["side"]}, "trainable 'side' matches nothing; did you mean 'sides'?"),
        (
            ["sides", "refusing"],
            None,
            {},
            "backbone 'cifar_resnet', adapted by 'sides', cannot be adapted (hook adapt_backbone): 'refusing' @: this",
        ),
        (["sides", "sides"], None, {}, "backbone.adapt.1: 'sides' is named twice"),
        (
            ["sides", "sdes"],
            {"sides": {}},
            {},
            "backbone.adapt.1: 'sdes' is not one of the recipe's methods; did you mean",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_data_is_read(plan, adapt, methods, stage, message):
    with pytest.raises(RecipeError) as error:
        plan(adapt, methods, **stage)
    assert message.replace("@", "(ltcore-tests 0.0)") in str(error.value)
    assert str(error.value).partition(": ")[0].rpartition("r.yaml:")[2].isdigit()


def test_an_answer_that_is_no_backbone_names_the_method(plan):
    with pytest.raises(PluginError, match=r"'nothing' .*adapt_backbone returned Linear, which is no ltcore.Backbone"):
        plan(["nothing"])


def test_a_cache_may_stand_beside_an_adapter_that_does_not_train(plan):
    plan(["sides"], trainable=["classifier"], cache="eval")


def test_a_network_around_the_network_keeps_what_weights_were_trained_on(plan):
    made = plan(["sides", "wrapping"], trainable=["wrapping", "backbone.layer3", "classifier"])
    assert isinstance(made.skeleton, Around) and made.skeleton.added_by["last.weight"] == "wrapping"
    assert made.skeleton.added_by["inner.conv1.side.weight"] == "sides"
    network = plan([], {}).skeleton
    network.pretraining = "what it was"
    assert adapted(network, 3, made.adaptation, made.loaded).pretraining == "what it was"


# A run


def figures(run):
    result = run.execute()
    with np.load(run.directory.path / "predictions.npz") as found:
        arrays = {name: found[name] for name in found}
    return result, arrays, {name: tensor.clone() for name, tensor in run.assembly.model.state_dict().items()}


def test_an_adapter_that_never_trains_and_begins_at_zero_changes_no_bit(make_run):
    network = {"first": ["backbone.*.conv?.weight", "classifier"], "second": ["classifier"]}  # and not the sides
    one, other = (figures(make_run(name, **parts(adapt, **network))) for name, adapt in (("p", []), ("a", ["sides"])))
    assert all(np.array_equal(one[1][name], other[1][name]) for name in one[1])
    assert all(torch.equal(one[2][name], other[2][name]) for name in one[2])
    assert {name.rpartition(".side.")[1] for name in other[2].keys() - one[2].keys()} == {".side."}


def test_initial_values_are_the_adapters_own_draw(make_run):
    """They move no other draw: neither the classifier's, nor the methods', nor that of another adapter."""
    found = {}
    for name, adapt in (("plain", []), ("one", ["sides"]), ("two", ["sides", "more"]), ("turned", ["more", "sides"])):
        under = {"sides": "layer1", "more": "layer2"}
        methods = {key: {"use": "sides", "options": {"value": None, "under": under[key]}} for key in adapt}
        run = make_run(
            name,
            backbone={**RESNET, "adapt": adapt},
            methods=methods | {"reading": {}},
            stages=[{"name": "s", **STAGE, "methods": ["reading"]}],
        )
        run.assembly.start()
        run.assembly.enter("s", 0)
        run.assembly.prepare(0, run.assembly.hooks(0))
        found[name] = run.assembly.model.state_dict()
    for name, state in found.items():
        assert all(torch.equal(state[key], value) for key, value in found["plain"].items()), name
    assert all(torch.equal(found["two"][key], value) for key, value in found["one"].items())
    assert all(torch.equal(found["two"][key], value) for key, value in found["turned"].items())
    sides = [value for key, value in found["two"].items() if ".side." in key]
    assert len(sides) == 4 and all(value.std() > 0 for value in sides)


def test_only_what_the_stage_names_trains(make_run):
    run = make_run(**parts(["sides"]))
    files = [run.directory.stage_file(index, name) for index, name in enumerate(("first", "second"))]
    run.execute()
    before, after = (checkpoint.load(file)[0] for file in files)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "side" in name or "classifier" in name}


# Opened, merged, taken over


@pytest.fixture
def trained(write_recipe, tmp_path):
    recipe = write_recipe("adapted", **parts(["sides"]))
    return ltcore.run(recipe, out=tmp_path / "out")


def test_a_run_is_opened_with_its_adapters(trained):
    model = ltcore.load(trained.path).model
    assert isinstance(model.backbone.conv1, Side) and model.backbone.added_by["conv1.side.weight"] == "sides"
    assert model.backbone.conv1.side.weight.abs().sum() > 0


@pytest.mark.parametrize("to", ["torchscript", "torch_export"])
def test_exports_have_plain_layers_in_place_of_what_is_merged(trained, tmp_path, cli, to):
    out = tmp_path / f"model.{'pt2' if to == 'torch_export' else 'pt'}"
    done = cli("export", trained.path, "--to", to, "--out", out)
    assert done.code == 0 and "checked on 16 test images" in done.out, done.err
    loaded = torch.export.load(out).module() if to == "torch_export" else torch.jit.load(out)
    names = {name for name, _ in loaded.named_parameters()}
    assert "backbone.conv1.weight" in names and not any("side" in name for name in names)
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), trained.model(images), rtol=1e-5, atol=1e-5)


def test_merging_leaves_other_modules_as_they_are():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Sequential(Side(nn.Conv2d(2, 3, 3, padding=1), None)), nn.Conv2d(3, 3, 1))
    images, kept = torch.randn(1, 2, 5, 5), network[1]
    with torch.no_grad():
        expected = network(images)
        merge(network)
        torch.testing.assert_close(network(images), expected)
    assert type(network[0][0]) is nn.Conv2d and network[1] is kept


def test_stages_are_taken_over_where_the_adapters_are_the_same(trained, write_recipe, cli, tmp_path):
    later = parts(["sides"])
    later["stages"].append({"name": "third", **STAGE, "trainable": ["classifier"], "methods": ["reading"]})
    words = ("--out", tmp_path / "out", "--from", trained.path)
    whole = cli("run", write_recipe("whole", **later), "--out", tmp_path / "out")
    done = cli("run", write_recipe("later", **later), *words)
    assert done.code == whole.code == 0, done.err
    (one,), (other,) = ([*(tmp_path / "out" / name).iterdir()] for name in ("whole", "later"))
    results = [json.loads((path / "result.json").read_text()) for path in (one, other)]
    assert results[1]["reused"]["stages"] == 2 and results[0]["after_calibration"] == results[1]["after_calibration"]
    with np.load(one / "predictions.npz") as a, np.load(other / "predictions.npz") as b:
        assert np.array_equal(a["logits"], b["logits"])
    changed = parts(["sides"], value=0.1)
    cli("run", write_recipe("changed", **changed), *words).is_one_message(
        2, "--from", "its method 'sides', which adapts the backbone, has other options"
    )
    cli("run", write_recipe("without", **parts([], second=["classifier"])), *words).is_one_message(
        2, "--from", "its backbone is another"
    )


def test_killed_and_gone_on_with_to_the_bit(cli, write_recipe, tmp_path, copy_at_checkpoint):
    path = write_recipe("r", **parts(["sides"]), checkpoint_seconds=0)
    copy_at_checkpoint(2, tmp_path / "killed" / "r", stage="second")
    assert cli("run", path, "--out", tmp_path / "out").code == 0
    copy_at_checkpoint()
    (whole,), (killed,) = ([*(tmp_path / out / "r").iterdir()] for out in ("out", "killed"))
    done = cli("run", path, "--resume", "--out", tmp_path / "killed")
    assert done.code == 0 and "going on from stage 2, epoch 1, step 3" in done.out, done.err
    with np.load(whole / "predictions.npz") as a, np.load(killed / "predictions.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_an_option_of_an_adapter_changes_what_is_trained(write_recipe):
    recipe = load_recipe(write_recipe(**parts(["sides"]))).recipe
    both = recipe.model_copy(update={"calibrate": ["sides"]})
    assert not only_calibrates(both, "methods.sides.options.value")
    alone = both.model_copy(update={"backbone": both.backbone.model_copy(update={"adapt": []})})
    assert only_calibrates(alone, "methods.sides.options.value")
