"""`isda` and `metasaug` against trainings whose steps are written by hand, with statistics by NumPy."""

import copy
import json

import numpy as np
import pytest
import torch
from ltcore_isda import ISDA, ISDAOptions, MetaSAug, MetaSAugOptions
from pydantic import ValidationError
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import ltcore
from ltcore import RecipeError
from ltcore.files import checkpoint
from ltcore.networks.optimizers import set_learning_rate
from ltcore.plan.plan import make_plan
from ltcore.recipe.loading import load_recipe
from ltcore.testing import write_short_recipe

COUNTS = [24, 12, 6, 4]


def test_defaults_and_bounds():
    assert ISDA().options.model_dump() == {"strength": 0.5, "covariance": "full"}
    own = {"start_epoch": 160, "meta_rate": 0.1, "meta_batch_size": 100, "augmented": True, "margin": 0.0}
    assert MetaSAug().options.model_dump() == {"strength": 0.25, "covariance": "full", **own}
    for options, wrong in [
        (ISDAOptions, {"strength": -1.0}),
        (ISDAOptions, {"covariance": "low-rank"}),
        (ISDAOptions, {"start_epoch": 1}),
        (MetaSAugOptions, {"meta_rate": 0.0}),
        (MetaSAugOptions, {"meta_batch_size": 0}),
        (MetaSAugOptions, {"margin": -0.5}),
    ]:
        with pytest.raises(ValidationError):
            options(**wrong)
    assert all(field.description for field in MetaSAugOptions.model_fields.values())


def recipe(tmp_path, methods, name="r", holdout=2, **stage):
    sgd = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    data = {"use": "synthetic", "options": {"class_counts": COUNTS, "image_size": 8, "test_per_class": 4}}
    return write_short_recipe(
        tmp_path / f"{name}.yaml",
        data={**data, "holdout": holdout, "transform": {"crop_padding": 1}},
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods={key: {"options": options} for key, options in methods.items()},
        stages=[{"epochs": 3, "optimizer": sgd, **stage}],
        threads=1,
        diagnostics="off",
    )


def run(file, out):
    """The model at the end of the stage by name, without counters, and its losses."""
    path = ltcore.run(file, out=out).path
    model, _ = checkpoint.load(path / "checkpoints" / "stage-0-joint.safetensors")
    losses = [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {key: value for key, value in model.items() if "num_batches" not in key}, losses


class ByHand:
    """The run's own steps are replaced; batches, held-out images and optimiser are the run's."""

    def __init__(self, name, options):
        self.name, self.options, self.rows = name, options, [[] for _ in COUNTS]

    def covariance(self):
        """[C, D, D] of all features so far, by NumPy from all of them."""
        found = [np.cov(np.array(own).T, bias=True) if own else np.zeros((16, 16)) for own in self.rows]
        return torch.tensor(np.stack(found), dtype=torch.float32)

    def remember(self, features, targets):
        for row, label in zip(features.detach().double().numpy(), targets.tolist(), strict=True):
            self.rows[label].append(row)

    def loss(self, features, weight, bias, targets, covariance, weights, strength):
        """Row by row; weighted by class as the run says."""
        if self.options["covariance"] == "diagonal":
            covariance = covariance * torch.eye(16)
        values = []
        for f, y in zip(features, targets.tolist(), strict=True):
            spread = torch.stack([(w - weight[y]) @ covariance[y] @ (w - weight[y]) for w in weight])
            z = f @ weight.T + bias + strength / 2 * spread
            own = torch.eye(len(COUNTS))[y] * self.options.get("margins", [0.0] * 4)[y]
            values.append(cross_entropy((z - own)[None], torch.tensor([y])))
        values = torch.stack(values)
        return values.mean() if weights is None else (weights[targets] * values).sum() / weights[targets].sum()

    def __call__(self, run, loop, *_):
        method, context = loop.model.methods[self.name], run.assembly.contexts[self.name]
        optimizer, given = loop.optimizer, []

        def forward(batch, weights):
            strength = self.options["strength"] * context.epoch / context.epochs
            optimizer.zero_grad()
            step = self.isda if self.name == "isda" else self.metasaug
            given[:] = [step(loop.model, method, context, batch, weights, strength)]
            return {"classification": given[0]}

        def update(losses, rate):
            set_learning_rate(optimizer, rate)
            given[0].backward()
            optimizer.step()
            return given[0].detach()

        loop.forward, loop.update = forward, update

    def isda(self, model, method, context, batch, weights, strength):
        """Wang et al. 2019, algorithm 1: the batch counts in its own covariances."""
        features, layer = model.backbone(batch.images), model.classifier
        self.remember(features, batch.targets)
        return self.loss(features, layer.weight, layer.bias, batch.targets, self.covariance(), weights, strength)

    def metasaug(self, model, method, context, batch, weights, strength):
        """Li et al. 2021, algorithm 1, as in its code."""
        if context.epoch < self.options["start_epoch"]:
            values = cross_entropy(model(batch.images), batch.targets, reduction="none")
            assert weights is None
            return values.mean()
        images, targets = method._meta_set(context)
        twin, covariance = copy.deepcopy(model), self.covariance().requires_grad_()
        layer = twin.classifier
        inner = self.loss(
            twin.backbone(batch.images), layer.weight, layer.bias, batch.targets, covariance, weights, strength
        )
        theirs = {n: p for n, p in twin.named_parameters() if n.startswith(("backbone", "classifier"))}
        steps = torch.autograd.grad(inner, list(theirs.values()), create_graph=True)
        rate = context.learning_rate
        ahead = {name: p - rate * g for (name, p), g in zip(theirs.items(), steps, strict=True)}
        meta = cross_entropy(functional_call(twin, ahead, (images,)), targets)
        (slope,) = torch.autograd.grad(meta, covariance)
        self.moved = max(getattr(self, "moved", 0.0), slope.abs().max().item())
        features, layer = model.backbone(batch.images), model.classifier
        corrected = covariance.detach() - self.options["meta_rate"] * slope
        loss = self.loss(features, layer.weight, layer.bias, batch.targets, corrected, weights, strength)
        self.remember(features, batch.targets)
        return loss


def same(ours, expected, atol=2e-4):
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        if not name.startswith(("methods.", "model/methods.")):
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=atol)


@pytest.mark.parametrize("covariance", ["full", pytest.param("diagonal", marks=pytest.mark.slow)])
def test_a_run_of_isda_is_the_one_written_by_hand(tmp_path, look_on, covariance):
    options = {"strength": 2.0, "covariance": covariance}
    others = {"inverse_frequency": {}} if covariance == "full" else {}
    ours, losses = run(recipe(tmp_path, {"isda": options, **others}), tmp_path)
    _, plain = run(recipe(tmp_path, others, "plain"), tmp_path)
    look_on(stage_started=(hand := ByHand("isda", options)))
    expected, theirs = run(recipe(tmp_path, {"isda": options, **others}, "by_hand"), tmp_path)
    same(ours, expected)
    assert losses == pytest.approx(theirs, rel=1e-4) and losses[0] == pytest.approx(plain[0], rel=1e-5)
    assert abs(losses[2] - plain[2]) > 1e-3
    kept = next(value for name, value in ours.items() if name.endswith("isda.covariance"))
    by_numpy = hand.covariance() if covariance == "full" else hand.covariance().diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(kept, by_numpy, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("covariance", ["full", pytest.param("diagonal", marks=pytest.mark.slow)])
def test_a_run_of_metasaug_is_the_one_written_by_hand(tmp_path, look_on, covariance):
    options = {"strength": 2.0, "covariance": covariance, "start_epoch": 1, "meta_rate": 5.0, "meta_batch_size": 6}
    margin = 0.5 if covariance == "full" else 0.0
    methods = {"drw": {"start_epoch": 1, "beta": 0.99}, "metasaug": {**options, "margin": margin}}
    ours, losses = run(recipe(tmp_path, methods), tmp_path)
    uncorrected, _ = run(
        recipe(tmp_path, methods | {"metasaug": {**methods["metasaug"], "meta_rate": 1e-9}}, "n"), tmp_path
    )
    held = [margin * (2 / (n - 2)) ** 0.25 for n in COUNTS]  # two of each class are held out
    look_on(stage_started=(hand := ByHand("metasaug", options | {"margins": held})))
    expected, theirs = run(recipe(tmp_path, methods, "by_hand"), tmp_path)
    same(ours, expected)
    assert losses == pytest.approx(theirs, rel=1e-4) and hand.moved > 1e-4
    weight = next(name for name in ours if name.endswith("classifier.weight"))
    assert (ours[weight] - expected[weight]).abs().max() < 0.1 * (ours[weight] - uncorrected[weight]).abs().max()


def test_before_its_epoch_metasaug_is_plain_training_to_the_bit(tmp_path):
    _, plain = run(recipe(tmp_path, {}, "plain"), tmp_path)
    _, ours = run(recipe(tmp_path, {"metasaug": {"start_epoch": 2, "strength": 2.0, "margin": 0.5}}), tmp_path)
    assert ours[:2] == plain[:2] and ours[2] != plain[2]


def test_what_they_need_is_refused_before_any_data_is_read(tmp_path):
    for need, methods, holdout in [
        ("validation", {"metasaug": {"start_epoch": 0}}, 0),
        ("hard_labels", {"isda": {}, "mixup": {}}, 0),
    ]:
        with pytest.raises(RecipeError, match=rf"needs {need}|{need}"):
            make_plan(load_recipe(recipe(tmp_path, methods, holdout=holdout)))


def test_matrices_that_are_too_large_are_refused(ltcore_context):
    context = ltcore_context()
    object.__setattr__(context, "feature_shape", lambda tap: (20_000,))
    with pytest.raises(RecipeError, match=r"4 covariances of 20000 features take 6.0 GiB; set its option covariance"):
        ISDA().on_run_start(context=context)


def test_both_beside_a_classifier_that_normalises(tmp_path):
    """The statistics are of features as the weight meets them."""
    ours, _ = run(recipe(tmp_path, {"ldam": {}, "isda": {}}), tmp_path)
    mean, covariance = (ours[next(n for n in ours if n.endswith(end))] for end in ("isda.mean", "isda.covariance"))
    squares = covariance.diagonal(dim1=1, dim2=2).sum(1) + mean.square().sum(1)
    torch.testing.assert_close(squares, torch.ones(4), rtol=1e-3, atol=1e-3)  # of unit vectors
