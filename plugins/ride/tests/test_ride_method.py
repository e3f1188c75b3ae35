"""RIDE in runs: with LDAM and DRW, killed and gone on with, exported and opened, with a router or OFA behind it."""

import json

import numpy as np
import pytest
import torch
from ltcore_ride import RIDE, RIDEOptions, RIDERouter, RIDERouterOptions, RoutedExperts
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

import ltcore
from ltcore import DataError, ExpertClassifiers, Features, RecipeError
from ltcore.export import FORMATS, export
from ltcore.files import checkpoint
from ltcore.files.run_directory import RunDirectory
from ltcore.plan.plan import make_plan
from ltcore.recipe.loading import load_recipe
from ltcore.testing import make_batch, make_context, write_short_recipe

SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
EXPERTS = {"name": "experts", "epochs": 2, "batch_size": 16, "methods": ["ride", "ldam", "drw"], "optimizer": SGD}
ROUTER = {"name": "router", "epochs": 2, "batch_size": 16, "methods": ["ride_router"], "optimizer": SGD}
ROUTER |= {"classification": False, "sampler": "class_balanced", "trainable": ["classifier.ensemble"], "cache": "eval"}
OFA = {"name": "ofa", "epochs": 2, "batch_size": 16, "methods": ["ofa"], "optimizer": SGD, "trainable": ["classifier"]}
GLAG = {**OFA, "name": "glag", "methods": ["afg", "distillation"], "cache": "eval"}
#: The methods of a stage behind the experts', with options that suit 52 images.
SECOND = {
    "ride_router": {},
    "ofa": {"options": {"confusing": 2, "augmented": 1}},
    "afg": {"options": {"head_images": 10, "pooled_classes": 1}},
    "distillation": {"options": {"head_images": 10}},
}
METHODS = {"ldam": {}, "drw": {"options": {"start_epoch": 1}}}


def recipe(tmp_path, name="r", stages=(EXPERTS,), ride=None, adapt=("ride",), methods=None, **parts):
    options = {"width": 0.75, "temperature_epoch": 1, **(ride or {})}
    given = {"ride": {"options": options}, **METHODS, **(methods or {})}
    used = {*adapt, *parts.get("calibrate", ()), *(key for stage in stages for key in stage.get("methods", ()))}
    data = {"class_counts": [24, 16, 8, 4], "image_size": 8, "test_per_class": 4}
    return write_short_recipe(
        tmp_path / f"{name}.yaml",
        data={"use": "synthetic", "options": data, "holdout": 1},
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}, "adapt": list(adapt)},
        methods={key: value for key, value in given.items() if key in used},
        stages=[{"methods": [], **stage} for stage in stages],
        **parts,
    )


def train(path, out, resume=False):
    return ltcore.run(path, out=out, resume=resume).path


# -- the method alone


def test_defaults_and_bounds():
    assert RIDE().options.model_dump() == {
        "experts": 3,
        "stages": 2,
        "width": 0.75,
        "diversity": 0.2,
        "temperature": 1.0,
        "temperature_ratio": 0.05,
        "temperature_epoch": None,
    }
    assert RIDERouter().options.model_dump() == {"top": 30, "hidden": 16, "positive_weight": 100.0}
    wrong = [{"experts": 0}, {"stages": 0}, {"width": 0}, {"width": 1.1}, {"diversity": -1}, {"temperature_ratio": 1}]
    for options, given in [*((RIDEOptions, each) for each in wrong), (RIDERouterOptions, {"top": 0})]:
        with pytest.raises(ValidationError):
            options(**given)
    fields = [*RIDEOptions.model_fields.values(), *RIDERouterOptions.model_fields.values()]
    assert all(field.description for field in fields)


def test_what_it_says_of_a_batch():
    """Factors of E for the experts' rows; the diversity of those rows only, whatever was appended behind them."""
    method, context = (
        RIDE(RIDEOptions(diversity=0.5, temperature_epoch=1, temperature_ratio=0.3)),
        make_context(epoch=0),
    )
    method.on_run_start(context=context)
    record = Features.of(make_batch(), torch.randn(8, 3), None)
    logits = torch.randn(24, 4)
    assert method.sample_weights(values=torch.rand(8), features=record) is None
    assert method.auxiliary_losses(features=record, logits=logits[:8], context=context)["diversity"] == 0
    split = record.split(torch.randn(24, 3), 3)
    assert method.sample_weights(values=torch.rand(24), features=split).equal(torch.full((24,), 3.0))
    early = method.auxiliary_losses(features=split, logits=logits, context=context)["diversity"]
    more = split.append(torch.randn(1, 3), torch.tensor([0]), torch.tensor([0]), torch.tensor([2]))
    again = method.auxiliary_losses(features=more, logits=torch.cat([logits, 9 * logits[:1]]), context=context)
    assert early < 0 and again["diversity"] == early
    late = make_context(epoch=1)
    assert method.auxiliary_losses(features=split, logits=logits, context=late)["diversity"] != early
    none = RIDE(RIDEOptions(diversity=0))
    assert none.auxiliary_losses(features=split, logits=logits, context=context)["diversity"] == 0


def test_refusals():
    with pytest.raises(RecipeError, match="temperature_epoch 2 never comes in 2 epochs"):
        RIDE(RIDEOptions(temperature_epoch=2)).check_stage(ltcore.Stage(**{**EXPERTS, "methods": []}))
    with pytest.raises(DataError, match="a class has no training images"):
        RIDE().on_run_start(context=make_context(counts=(4, 1, 0)))


def test_the_router_counts_who_is_asked_and_trains_only_its_gates():
    method, context = RIDERouter(RIDERouterOptions(top=9)), make_context()
    classifier = ExpertClassifiers(
        [torch.nn.Linear(3, 4) for _ in range(3)], method.build_ensemble(feature_dim=3, num_classes=4, experts=3)
    )
    context.model.classifier = classifier
    assert classifier.ensemble.top == 4
    features = torch.randn(24, 3, requires_grad=True)
    split = Features.of(make_batch(), features[:8], None).split(features, 3)
    logits = classifier.rows(features, split.expert)
    loss = method.auxiliary_losses(features=split, logits=logits, context=context)["gates"]
    loss.backward()
    assert features.grad is None and all(p.grad is None for p in classifier.experts.parameters())
    assert all(p.grad is not None and p.grad.any() for p in classifier.ensemble.hidden[0].parameters())
    pooled = torch.stack(features.detach().split(8), 1)
    each = torch.stack(logits.detach().split(8), 1)
    asked = (classifier.ensemble.scores(pooled, each) > 0).float().cumprod(1).sum() + 8
    assert float(method.logged()["experts asked"]) == pytest.approx(float(asked) / 8)
    method.on_epoch_start()
    assert method.logged()["experts asked"] == 0


# -- in a run


def test_one_expert_is_ldam_alone_to_the_bit(tmp_path):
    alone = {**EXPERTS, "methods": ["ldam", "drw"]}
    plain = ltcore.load(train(recipe(tmp_path, "plain", [alone], adapt=()), tmp_path / "runs"))
    one = ltcore.load(train(recipe(tmp_path, "one", ride={"experts": 1, "width": 1.0}), tmp_path / "runs"))
    np.testing.assert_array_equal(plain.logits, one.logits)
    for name, value in plain.model.state_dict().items():
        assert value.equal(one.model.state_dict()[name]), name


def test_a_step_is_the_sum_of_the_experts_losses_with_their_margins(tmp_path, look_on):
    """The first step of the epoch in which weights and temperatures begin, written out expert by expert."""
    found = {}

    def first(run, loop, losses):
        if loop.state.epoch == 1 and "losses" not in found:
            found.update(losses={name: float(value) for name, value in losses.items()}, **batches[-1])
            found["weights"] = loop.weights

    batches = []

    def watch(run, loop):
        forward = loop.forward._features

        def seen(batch, *others):
            record = forward(batch, *others)
            classifier = run.assembly.model.classifier
            batches.append({"logits": classifier.rows(record.features, record.expert).detach(), "record": record})
            return record

        loop.forward._features = seen

    look_on(stage_started=watch, losses_computed=first)
    train(recipe(tmp_path, ride={"diversity": 0.45, "temperature_ratio": 0.3}), tmp_path / "runs")
    logits, targets, weights = found["logits"], found["record"].targets[:16], found["weights"]
    counts = torch.tensor([23.0, 15, 7, 3])  # one of each class is held out
    margins = 30 * 0.5 * (3 / counts) ** 0.25
    temperature = 4 * counts / counts.sum() * 0.3 + 0.7
    temperature = temperature / temperature.max()
    total, diversity = 0.0, 0.0
    mean = (logits.view(3, 16, 4).mean(0) / temperature).softmax(1)
    for expert in logits.view(3, 16, 4):
        adjusted = expert - margins * torch.nn.functional.one_hot(targets, 4)
        total += float(cross_entropy(adjusted, targets, weights))
        own = (expert / temperature).log_softmax(1)
        diversity -= 0.45 * float(temperature.mean() ** 2 * (mean * (mean.log() - own)).sum(1).mean())
    assert found["losses"]["classification"] == pytest.approx(total, rel=1e-5)
    assert found["losses"]["ride/diversity"] == pytest.approx(diversity, rel=1e-4)


@pytest.mark.parametrize(
    "second",
    [pytest.param(stage, marks=pytest.mark.slow) for stage in (ROUTER, OFA, GLAG)],
    ids=lambda stage: stage["name"],
)
def test_killed_in_either_stage_it_goes_on_to_the_same_bits(tmp_path, copy_at_checkpoint, second):
    path = recipe(
        tmp_path,
        stages=[EXPERTS, second],
        methods={**SECOND, "tau_norm": {}},
        calibrate=["tau_norm"],
        checkpoint_seconds=0,
    )
    for stage in ("experts", second["name"]):
        copy_at_checkpoint(3, tmp_path / stage / "r", stage)
        whole = ltcore.load(train(path, tmp_path / f"runs-{stage}"))
        copy_at_checkpoint()
        again = ltcore.load(train(path, tmp_path / stage, resume=True))
        np.testing.assert_array_equal(whole.calibrated_logits, again.calibrated_logits)
    if second is ROUTER:
        assert isinstance(whole.model.classifier.ensemble, RoutedExperts)
        line = json.loads((whole.path / "metrics.jsonl").read_text().splitlines()[-1])
        assert 1 <= line["methods"]["ride_router"]["experts asked"] <= 3
    else:
        before = checkpoint.load(RunDirectory(whole.path).stage_file(0, "experts"))[0]
        for number in range(3):
            name = f"classifier.experts.{number}.raw_weight"
            now = checkpoint.load(RunDirectory(whole.path).stage_file(1, second["name"]))[0][f"model/{name}"]
            assert not now.equal(before[f"model/{name}"]), "each expert's classifier is fine-tuned"


@pytest.mark.slow
def test_it_is_exported_and_opened_with_its_router(tmp_path):
    """Every format gives the run's logits on images that the run has recorded; `export` compares them itself."""
    path = recipe(
        tmp_path, stages=[EXPERTS, ROUTER], methods={"ride_router": {}, "tau_norm": {}}, calibrate=["tau_norm"]
    )
    run = ltcore.load(train(path, tmp_path / "runs"))
    np.testing.assert_array_equal(run.predict(run.read_data().test.images).logits, run.calibrated_logits)
    for to, (ending, _) in FORMATS.items():
        first, *checked = export(run, to, tmp_path / (f"model{ending}" if to != "hub" else "hub"))
        assert "3 experts with the method's classifiers" in first and checked[0].startswith("checked on the probe")
    assert (tmp_path / "hub" / "model.pt2").exists(), "timm has no such network"


def test_the_router_needs_experts(tmp_path):
    path = recipe(tmp_path, stages=[{**EXPERTS, "methods": ["ldam"]}, ROUTER], adapt=(), methods={"ride_router": {}})
    with pytest.raises(RecipeError, match=r"'ride_router' .* needs experts \(a backbone with experts\)"):
        make_plan(load_recipe(path))


def test_a_network_that_cannot_be_split_is_refused_with_its_place(tmp_path):
    with pytest.raises(RecipeError, match=r"'ride' \(ltcore-ride .*splits the last 3 of a residual network's stages"):
        make_plan(load_recipe(recipe(tmp_path, ride={"stages": 3})))


def test_experts_learn_different_things(tmp_path):
    """The diversity drives them apart: their answers differ more with it than without."""

    def disagreement(diversity):
        run = ltcore.load(
            train(recipe(tmp_path, f"d{int(diversity)}", ride={"diversity": diversity}), tmp_path / "runs")
        )
        pooled = torch.from_numpy(run.features("train"))
        each = run.model.classifier.each(pooled).softmax(2)
        return float((each - each.mean(1, keepdim=True)).square().sum((1, 2)).mean())

    assert disagreement(3.0) > 1.05 * disagreement(0.0)
