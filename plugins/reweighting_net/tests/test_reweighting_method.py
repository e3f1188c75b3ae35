import copy
import json
from types import SimpleNamespace

import pytest
import torch
from ltcore_reweighting_net import L2RW, L2RWOptions, MetaWeightNet, MetaWeightNetOptions
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import ltcore
from ltcore import RecipeError
from ltcore.data.loader import Normalizer
from ltcore.files import checkpoint
from ltcore.networks.optimizers import set_learning_rate
from ltcore.plan.plan import make_plan
from ltcore.recipe.loading import load_recipe
from ltcore.testing import write_short_recipe

COUNTS = [48, 24, 12, 6]


def test_defaults_and_bounds():
    assert L2RW().options.model_dump() == {"meta_batch_size": 100, "augmented": True}
    more = {"hidden": 100, "normalise": True, "through_loss": True}
    assert MetaWeightNet().options.model_dump() == {**L2RW().options.model_dump(), **more}
    for options, wrong in [
        (L2RWOptions, {"meta_batch_size": 0}),
        (L2RWOptions, {"hidden": 5}),
        (MetaWeightNetOptions, {"hidden": 0}),
    ]:
        with pytest.raises(ValidationError):
            options(**wrong)
    fields = [*L2RWOptions.model_fields.values(), *MetaWeightNetOptions.model_fields.values()]
    assert all(field.description for field in fields)


# -- in a run ----------------------------------------------------------------------------------------------------------


def recipe(tmp_path, name="r", methods=None, holdout=2, **stage):
    methods = {key: {"options": options} for key, options in (methods or {}).items()}
    mine = [key for key in methods if key == "meta_weight_net"]
    data = {"use": "synthetic", "options": {"class_counts": COUNTS, "image_size": 8, "test_per_class": 4}}
    sgd = {
        "name": "sgd",
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "groups": {key: {"lr": 0.5} for key in mine},
    }
    return write_short_recipe(
        tmp_path / f"{name}.yaml",
        data={**data, "holdout": holdout, "transform": {"crop_padding": 1}},
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods=methods,
        stages=[{"trainable": ["backbone", "classifier", *mine], "optimizer": sgd, **stage}],
    )


def run(file, out):
    """The model at the end of the stage by name, without counters, and its loss lines."""
    path = ltcore.run(file, out=out).path
    model, _ = checkpoint.load(path / "checkpoints" / "stage-0-joint.safetensors")
    losses = [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    kept = {key.removeprefix("model/"): value for key, value in model.items() if "num_batches" not in key}
    return kept, losses


@pytest.mark.parametrize("method", ["l2rw", "meta_weight_net"])
def test_what_they_need_is_refused_before_any_data_is_read(tmp_path, method):
    with pytest.raises(RecipeError, match=rf"'{method}' \(ltcore-reweighting-net .* needs validation"):
        make_plan(load_recipe(recipe(tmp_path, methods={method: {}}, holdout=0)))
    with pytest.raises(RecipeError, match="there are no loss values of images to weigh"):
        type_of = {"l2rw": L2RW, "meta_weight_net": MetaWeightNet}[method]
        type_of().check_stage(SimpleNamespace(classification=False))


def test_a_network_that_does_not_train_is_refused(tmp_path):
    file = recipe(
        tmp_path, methods={"meta_weight_net": {}}, trainable=["backbone", "classifier"], optimizer={"lr": 0.1}
    )
    with pytest.raises(RecipeError, match=r"'meta_weight_net' .* needs own_parameters_train"):
        make_plan(load_recipe(file))


# -- against finite differences, in float64 ----------------------------------------------------------------------------


class Enough(BaseException):
    """Ends the run: what it was for has been seen."""


class Recorder:
    """An objective that remembers the weights it is called with."""

    def __init__(self, objective):
        self.objective, self.weights = objective, []

    def __getattr__(self, name):
        return getattr(self.objective, name)

    def __call__(self, at=None, sample_weights=None):
        self.weights.append(sample_weights)
        return self.objective(at=at, sample_weights=sample_weights)


@pytest.fixture
def look(monkeypatch, tmp_path):
    """``look(kind, methods, function)``: the function meets one step in float64, and what the method made of it."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    normalise = Normalizer.__call__
    monkeypatch.setattr(Normalizer, "__call__", lambda self, images: normalise(self, images).double())
    before = torch.get_default_dtype()

    def look(kind, methods, function):
        hook, meta = kind.compute_gradients, kind._meta_set

        def watched(self, objective, context):
            drawn = meta(self, context)
            with monkeypatch.context() as patched:
                patched.setattr(kind, "_meta_set", lambda self, context: drawn)
                recorder = Recorder(objective)
                answer = hook(self, recorder, context)
                function(self, objective, context, drawn, recorder, answer)
            raise Enough

        watched.__dict__.update(hook.__dict__)
        with monkeypatch.context() as patched:
            patched.setattr(kind, "compute_gradients", watched)
            torch.set_default_dtype(torch.float64)
            with pytest.raises(Enough):
                run(recipe(tmp_path, methods=methods), tmp_path)

    yield look
    torch.set_default_dtype(before)


def slopes(function, at, step=1e-6):
    """Central differences of a function of a flat tensor, one by one."""
    found = []
    for place in range(len(at)):
        up, down = at.clone(), at.clone()
        up[place] += step
        down[place] -= step
        found.append((function(up) - function(down)).item() / (2 * step))
    return torch.tensor(found)


OTHERS = {
    "alone": {},
    "balanced softmax, focal loss, class weights": {"balanced_softmax": {}, "focal": {}, "inverse_frequency": {}},
    "mixed images": {"mixup": {}},
}


@pytest.mark.parametrize("others", OTHERS.values(), ids=list(OTHERS))
def test_the_weights_of_l2rw_against_finite_differences(look, others):
    """By how much the meta loss behind a small step falls with the weight that an image has in it."""

    def function(method, objective, context, drawn, recorder, answer):
        images, targets = drawn

        def meta_loss(epsilon):
            steps = objective.gradients(objective(sample_weights=epsilon))
            ahead = {name: objective.parameters[name] - 0.1 * step for name, step in steps.items()}
            with torch.no_grad():
                return cross_entropy(objective.logits(images, at=ahead), targets)

        helps = (-slopes(meta_loss, torch.zeros(objective.size))).clamp(min=0)
        weights = recorder.weights[-1]
        assert weights.dtype == torch.float64 and not weights.requires_grad
        torch.testing.assert_close(weights, helps * objective.size / helps.sum(), rtol=1e-4, atol=1e-6)
        assert 0 < int((weights > 0).sum()) < objective.size  # some images help, and some do not
        expected = objective.gradients(objective(sample_weights=weights))
        assert all(torch.equal(answer[name], gradient) for name, gradient in expected.items())

    look(L2RW, {"l2rw": {}, **others}, function)


@pytest.mark.parametrize("through_loss", [True, False])
@pytest.mark.parametrize("others", list(OTHERS.values())[:2], ids=list(OTHERS)[:2])
def test_what_the_weight_net_learns_against_finite_differences(look, others, through_loss):
    """The meta loss behind a step of the current rate, as a function of the network's parameters."""

    def function(method, objective, context, drawn, recorder, answer):
        images, targets = drawn
        own = {f"methods.meta_weight_net.{name}": value for name, value in method.named_parameters()}
        others = {name: value for name, value in objective.parameters.items() if name not in own}
        assert set(answer) == set(own) | set(others)

        def meta_loss_at(name):
            def meta_loss(flat):
                method._learns = True
                steps = objective.gradients(objective(at={name: flat.view_as(own[name])}), at=others)
                method._learns = False
                ahead = {key: others[key] - context.learning_rate * step for key, step in steps.items()}
                with torch.no_grad():
                    return cross_entropy(objective.logits(images, at=ahead), targets)

            return meta_loss

        for name, value in own.items():
            expected = slopes(meta_loss_at(name), value.detach().flatten())
            torch.testing.assert_close(answer[name].flatten(), expected, rtol=1e-4, atol=1e-8)
            assert expected.abs().max() > 1e-6

    options = {"hidden": 8, "through_loss": through_loss}
    look(MetaWeightNet, {"meta_weight_net": options, **others}, function)


# -- against steps written by hand -------------------------------------------------------------------------------------


def by_hand(step):
    """The run's own steps are replaced by `step`; batches, held-out images and optimiser are the run's."""

    def replace_step(run, loop, *_):
        ((name, method),) = loop.model.methods.named_children()
        context = run.assembly.contexts[name]
        optimizer, given = loop.optimizer, []

        def first(batch, weights):
            # A copy of the network looks ahead, whose statistics nobody sees.
            twin = copy.deepcopy(loop.model)
            images, targets = method._meta_set(context)
            optimizer.zero_grad()
            loss = step(loop.model, twin, method, batch, images, targets, context.learning_rate)
            given[:] = [loss]
            return {"classification": loss}

        def update(losses, rate):
            set_learning_rate(optimizer, rate)
            given[0].backward()
            optimizer.step()
            return given[0].detach()

        loop.forward, loop.update = first, update

    return replace_step


def costs(network, batch):
    return cross_entropy(network(batch.images), batch.targets, reduction="none")


def parts(twin):
    return {n: p for n, p in twin.named_parameters() if n.startswith(("backbone", "classifier"))}


def l2rw_by_hand(model, twin, method, batch, images, targets, rate):
    """Ren et al. 2018, algorithm 1."""
    weights = parts(twin)
    epsilon = torch.zeros(len(batch.targets), requires_grad=True)
    inner = torch.autograd.grad((epsilon * costs(twin, batch)).sum(), list(weights.values()), create_graph=True)
    ahead = {name: p - rate * g for (name, p), g in zip(weights.items(), inner, strict=True)}
    meta = cross_entropy(functional_call(twin, ahead, (images,)), targets)
    helps = (-torch.autograd.grad(meta, epsilon)[0]).clamp(min=0)
    total = helps.sum()
    return ((helps / (total if total else 1)) * costs(model, batch)).sum()


def weight_net_by_hand(normalise):
    def step(model, twin, method, batch, images, targets, rate):
        """Shu et al. 2019, its code for long tails; both kinds of parameters take their steps together."""
        weights, one, two = parts(twin), method.network.layers[0], method.network.layers[2]

        def total(cost):
            v = torch.sigmoid(torch.relu(cost.reshape(-1, 1) @ one.weight.T + one.bias) @ two.weight.T + two.bias)[:, 0]
            return v / v.sum() if normalise else v / len(v)

        cost = costs(twin, batch)
        inner = torch.autograd.grad((cost * total(cost)).sum(), list(weights.values()), create_graph=True)
        ahead = {name: p - rate * g for (name, p), g in zip(weights.items(), inner, strict=True)}
        cross_entropy(functional_call(twin, ahead, (images,)), targets).backward(inputs=list(method.parameters()))
        cost = costs(model, batch)
        return (cost * total(cost).detach()).sum()

    return step


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("method", "options", "step"),
    [
        ("l2rw", {"meta_batch_size": 5}, l2rw_by_hand),
        ("meta_weight_net", {"hidden": 8}, weight_net_by_hand(True)),
        ("meta_weight_net", {"hidden": 8, "normalise": False, "augmented": False}, weight_net_by_hand(False)),
    ],
)
def test_a_run_is_the_one_written_by_hand(tmp_path, look_on, method, options, step):
    ours, losses = run(recipe(tmp_path, methods={method: options}), tmp_path)
    plain, _ = run(recipe(tmp_path, "plain"), tmp_path)
    look_on(stage_started=by_hand(step))
    expected, theirs = run(recipe(tmp_path, "by_hand", methods={method: options}), tmp_path)
    assert ours.keys() == expected.keys() and losses == pytest.approx(theirs, rel=1e-4)
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)
    assert (ours["classifier.weight"] - plain["classifier.weight"]).abs().max() > 1e-2
