"""The loss as a function of the weights, steps whose gradients a method computes, and extra rows, in real runs."""

import copy
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from ltcore import Batch, Context, Features, Method, Objective, hookimpl
from ltcore.errors import PluginError, RecipeError
from ltcore.plan.plan import make_plan
from ltcore.recipe.loading import load_recipe


class Plain(Method):
    @hookimpl
    def compute_gradients(self, objective: Objective) -> dict[str, Tensor]:
        return objective.gradients(objective())


class Random(Method):
    """Draws from its own and from the global generator, trains a layer, and counts its forward passes in a buffer."""

    auxiliary = ("noise",)

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.layer = nn.Linear(16, 1)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    @hookimpl
    def mix_inputs(self, batch: Batch, context: Context) -> Batch:
        self.passes += 1
        noise = torch.rand(batch.images.shape, generator=context.generator)
        return Batch(batch.images + noise, batch.targets, batch.source_index)

    @hookimpl
    def auxiliary_losses(self, features: Features) -> dict[str, Tensor]:
        return {"noise": (self.layer(features.features) * torch.rand(len(features.targets), 1)).square().mean()}


class Look(Method):
    """Calls `look` with the objective in the first step, and then trains as ever."""

    look: ClassVar = staticmethod(lambda objective, context: None)

    @hookimpl
    def compute_gradients(self, objective: Objective, context: Context) -> dict[str, Tensor]:
        if context.epoch == 0 and context._state.step == 0:
            found = type(self).look(objective, context)
            if found is not None:
                return found
        return objective.gradients(objective())


class Dropping(Method):
    @hookimpl
    def adjust_logits(self, logits: Tensor) -> Tensor:
        return nn.functional.dropout(logits, 0.5)


STAGE = {"epochs": 2, "batch_size": 8, "optimizer": {"lr": 0.05, "momentum": 0.9}, "clip_grad_norm": 1.0}


@pytest.fixture
def train(offer_methods, make_run):
    """Train a stage with some methods; returns the run."""
    offer_methods(plain=Plain, random=Random, look=Look, dropping=Dropping)

    def train(*methods, before=lambda run: None, **stage):
        trainable = ["backbone", "classifier", *(["random"] if "random" in methods else [])]
        stage = {"name": "one", **STAGE, "methods": list(methods), "trainable": trainable, **stage}
        run = make_run(methods={name: {} for name in methods}, stages=[stage])
        before(run)
        run.execute()
        return run

    return train


def same(one, other, *left_out):
    tensors = other.assembly.model.state_dict()
    for name, tensor in one.assembly.model.state_dict().items():
        if not name.startswith(left_out or ("nothing",)):
            assert torch.equal(tensor, tensors[name]), name


def test_the_trivial_answer_trains_to_the_same_bits(train):
    with_it, without = train("plain", "random", "dropping"), train("random", "dropping")
    same(with_it, without)
    lines = [(run.directory.path / "metrics.jsonl").read_text().split('"seconds"')[0] for run in (with_it, without)]
    assert lines[0] == lines[1]


def test_what_a_loss_does_not_depend_on_gets_no_gradient(train, monkeypatch):
    seen = {}

    def look(objective, context):
        weight = objective.parameters["classifier.weight"]
        seen.update(found=objective.gradients(weight.square().sum()), expected=2 * weight.detach().clone())

    monkeypatch.setattr(Look, "look", look)
    train("look")
    assert seen["found"].keys() == {"classifier.weight"}
    assert torch.equal(seen["found"]["classifier.weight"], seen["expected"])


def test_every_call_draws_the_same_numbers_and_buffers_learn_once(train, monkeypatch):
    seen = {}

    def look(objective, context):
        before = {name: buffer.clone() for name, buffer in context.model.named_buffers()}
        first = objective()
        after = {name: buffer.clone() for name, buffer in context.model.named_buffers()}
        again, moved = objective(), objective(at={k: v + 1e-3 for k, v in objective.parameters.items()})
        seen.update(losses=(first, again, moved), size=objective.size)
        seen["changed"] = [name for name, buffer in before.items() if not torch.equal(buffer, after[name])]
        seen["later"] = [n for n, buffer in context.model.named_buffers() if not torch.equal(buffer, after[n])]
        return objective.gradients(again)

    monkeypatch.setattr(Look, "look", look)
    run = train("look", "random", "dropping")
    first, again, moved = seen["losses"]
    assert torch.equal(first, again) and not torch.equal(first, moved)
    assert "methods.random.passes" in seen["changed"] and any("running_mean" in name for name in seen["changed"])
    assert seen["later"] == [] and seen["size"] == 8
    same(run, train("random", "dropping"))  # as if there had been one call


def test_other_weights_are_what_they_would_be_in_place(train, monkeypatch):
    """Losses and gradients at other weights, against a model in which they stand."""
    seen = {}

    def look(objective, context):
        here = objective.gradients(objective())
        at = {k: (v * 1.1).detach().requires_grad_() for k, v in objective.parameters.items()}
        seen["there"] = objective(at=at), objective.gradients(objective(at=at), at=at)
        kept = copy.deepcopy(context.model.state_dict())
        with torch.no_grad():
            for parameter in objective.parameters.values():
                parameter.mul_(1.1)
        moved = objective()
        seen["moved"] = moved, objective.gradients(moved)
        context.model.load_state_dict(kept)
        return here

    monkeypatch.setattr(Look, "look", look)
    train("look", "random")
    (loss, gradients), (expected, by_hand) = seen["there"], seen["moved"]
    torch.testing.assert_close(loss, expected)
    assert set(gradients) == set(by_hand) > {"classifier.weight", "methods.random.layer.weight"}
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, by_hand[name])


def test_weights_of_rows_are_differentiable_twice(train, monkeypatch):
    """The derivative of a look-ahead's loss on other images in the rows' weights, against finite differences."""
    seen = {}

    def look(objective, context):
        images = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        targets = torch.arange(6) % 4

        def ahead(weights):
            loss = objective(sample_weights=weights)
            steps = objective.gradients(loss, create_graph=True)
            there = {name: objective.parameters[name] - 0.1 * step for name, step in steps.items()}
            return nn.functional.cross_entropy(objective.logits(images, at=there).double(), targets)

        weights = torch.linspace(0.5, 1.5, objective.size, dtype=torch.float64).requires_grad_()
        (found,) = torch.autograd.grad(ahead(weights), weights)
        step = 1e-5
        for row in range(objective.size):
            up, down = weights.detach().clone(), weights.detach().clone()
            up[row] += step
            down[row] -= step
            seen.setdefault("expected", []).append((ahead(up) - ahead(down)).item() / (2 * step))
        seen["found"] = found

    monkeypatch.setattr(Look, "look", look)

    def in_double(run):
        run.assembly.model.double()
        loader = run.assembly.data.loaders["train"]
        monkeypatch.setattr(loader, "_normalise", lambda images, real=loader._normalise: real(images).double())
        monkeypatch.setattr(run.assembly, "_move", lambda: run.assembly.model.double())
        monkeypatch.setattr(Tensor, "float", Tensor.double)
        monkeypatch.setattr(run.evaluation, "figures", dict)

    with pytest.raises(Exception):  # noqa: B017  evaluation in double precision is not what this is about
        train("look", before=in_double)
    torch.testing.assert_close(seen["found"], torch.tensor(seen["expected"]).double(), rtol=1e-5, atol=1e-9)
    assert seen["found"].abs().max() > 1e-4


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda objective, context: {}, "never called objective"),
        (
            lambda objective, context: (objective(), {"classifier.w": torch.zeros(1)})[1],
            "gradient for 'classifier.w', wh",
        ),
        (
            lambda objective, context: (objective(), {"classifier.bias": torch.zeros(3)})[1],
            r"'classifier.bias' a gradient",
        ),
    ],
)
def test_what_is_no_gradient_of_what_trains_is_refused(train, monkeypatch, answer, message):
    monkeypatch.setattr(Look, "look", answer)
    with pytest.raises(PluginError, match=rf"'look' \(ltcore-tests 0.0\) .*{message}.*compute_gradients"):
        train("look")


def test_a_gradient_that_is_left_out_leaves_its_parameter(train, monkeypatch):
    def look(objective, context):
        return {name: g for name, g in objective.gradients(objective()).items() if "classifier" in name}

    class Always(Look):
        @hookimpl
        def compute_gradients(self, objective: Objective, context: Context) -> dict[str, Tensor]:
            return look(objective, context)

    monkeypatch.setattr(Look, "compute_gradients", Always.compute_gradients)
    kept = {}
    run = train("look", before=lambda run: kept.update(copy.deepcopy(run.assembly.model.state_dict())))
    now = run.assembly.model.state_dict()
    assert all(torch.equal(now[n], kept[n]) for n in kept if n.startswith("backbone") and n.endswith("weight"))
    assert not torch.equal(now["classifier.weight"], kept["classifier.weight"])


# Extra rows.


class Extra(Method):
    """Two more images for each batch; remembers what it met."""

    met: ClassVar[list] = []
    answer: ClassVar = staticmethod(
        lambda indices, generator: [torch.randint(52, (2,), generator=generator) for _ in indices]
    )

    @hookimpl
    def extra_rows(self, indices: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        return type(self).answer(indices, generator)

    @hookimpl
    def mix_inputs(self, batch: Batch, context: Context) -> Batch:
        assert torch.equal(batch.extra.targets, context.training_targets[batch.extra.source_index])
        Extra.met.append((context.epoch, batch.extra.source_index.tolist()))
        return batch

    @hookimpl
    def adjust_logits(self, logits: Tensor, features: Features) -> Tensor:
        assert len(features.extra.features) == 2 and len(logits) == len(features.targets)
        return logits


def test_extra_rows_are_a_function_of_seed_method_stage_and_epoch(offer_methods, make_run):
    offer_methods(extra=Extra)
    seen = []
    for names in (["extra"], ["other", "extra"]):
        Extra.met.clear()
        methods = {"extra": {}, "other": {"use": "extra"}}
        stage = {"name": "one", **STAGE, "methods": names}
        run = make_run(methods={name: methods[name] for name in names}, stages=[stage])
        run.execute()
        seen.append(list(Extra.met))
    assert seen[0] == seen[1][1::2]  # another method's extra rows change none of its own
    assert seen[0] != seen[1][0::2]
    assert [indices for epoch, indices in seen[0] if epoch == 0] != [i for epoch, i in seen[0] if epoch == 1]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda indices, generator: indices[1:],
        lambda indices, generator: [batch.float() for batch in indices],
        lambda indices, generator: [batch + 52 for batch in indices],
        lambda indices, generator: [batch[None] for batch in indices],
        lambda indices, generator: [batch.tolist() for batch in indices],
    ],
)
def test_extra_rows_that_are_no_indices_are_refused(offer_methods, make_run, monkeypatch, wrong):
    offer_methods(extra=Extra)
    monkeypatch.setattr(Extra, "answer", wrong)
    run = make_run(methods={"extra": {}}, stages=[{"name": "one", **STAGE, "methods": ["extra"]}])
    message = (
        r"stage 'one': 'extra' \(ltcore-tests 0.0\) gave no indices \[M\] int64 on the CPU, from 0 to 51, for each"
    )
    with pytest.raises(PluginError, match=message):
        run.execute()


# What a method owns and does not train, a stage's own backbone, and hooks that a stage does not call.


class Follows(Method):
    frozen = ("momentum", "*.bias")

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.online, self.momentum = nn.Linear(16, 2), nn.Linear(16, 2)

    @hookimpl
    def compute_loss(self, logits: Tensor, targets: Tensor, features: Features) -> Tensor:
        return nn.functional.cross_entropy(logits, targets, reduction="none") + self.online(features.features).mean(1)


def test_a_method_says_what_of_its_own_never_trains(offer_methods, make_run):
    offer_methods(follows=Follows)
    stage = {"name": "one", **STAGE, "methods": ["follows"], "trainable": ["backbone", "classifier", "follows"]}
    run = make_run(methods={"follows": {}}, stages=[stage])
    kept = copy.deepcopy(run.assembly.model.methods["follows"].state_dict())
    run.execute()
    now = run.assembly.model.methods["follows"].state_dict()
    assert [name for name in kept if not torch.equal(kept[name], now[name])] == ["online.weight"]


def test_a_stage_may_begin_with_a_backbone_of_its_own(make_run):
    began = {}

    def note(run):
        class Note:
            def __getattr__(self, name):
                return lambda *args: None

            def stage_started(self, loop):
                began[loop.stage.name] = copy.deepcopy(loop.model.backbone.state_dict())

        run._others = [Note()]
        return run

    one, two = ({"name": name, **STAGE} for name in ("one", "two"))
    run = note(make_run(stages=[one, {**two, "backbone": "rebuild"}]))
    run.execute()
    fresh = began["two"]
    ended = run.assembly.provider.frozen_model("one").backbone.state_dict()
    weights = [name for name in fresh if name.endswith("conv1.weight")]
    assert weights and all(
        not torch.equal(fresh[n], ended[n]) and not torch.equal(fresh[n], began["one"][n]) for n in weights
    )
    assert all(not buffer.any() for name, buffer in fresh.items() if name.endswith("running_mean"))


def test_a_backbone_that_is_built_anew_is_trained(write_recipe):
    stages = [{"name": "one", **STAGE}, {"name": "two", **STAGE, "backbone": "rebuild", "trainable": ["classifier"]}]
    with pytest.raises(
        RecipeError, match=r"r.yaml:3: stage 'two': backbone: rebuild makes a backbone that has learned"
    ):
        make_plan(load_recipe(write_recipe(stages=stages)))


class Both(Method):
    auxiliary = ("size",)

    @hookimpl
    def adjust_logits(self, logits: Tensor) -> Tensor:
        return logits

    @hookimpl
    def auxiliary_losses(self, features: Features) -> dict[str, Tensor]:
        return {"size": features.features.square().mean()}


def test_hooks_that_a_stage_without_classification_leaves_out_are_warned_of(offer_methods, write_recipe):
    offer_methods(both=Both)
    stages = [{"name": name, **STAGE, "methods": ["both"]} for name in ("one", "two")]
    path = write_recipe(methods={"both": {}}, stages=[{**stages[0], "classification": False}, stages[1]])
    (warning,) = make_plan(load_recipe(path)).warnings
    assert warning.startswith("stage 'one' has no classification, and does not call 'adjust_logits' of 'both' (ltcore-")
