"""Whole steps as graphs (``accelerate: step_graphs``): all but CUDA, with a recorder of operations on the CPU."""

import functools
import io
import json
import random
import re
import weakref
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ltcore.plan.acceleration
import ltcore.plan.checks
import ltcore.training.acceleration
from ltcore import Method, hookimpl
from ltcore.errors import LtcoreError
from ltcore.networks.optimizers import rates_as_tensors
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.training import whole_step
from ltcore.training.execute import execute
from ltcore.training.loop import Observer
from ltcore.training.python_state import changes, python_state, unknown
from tests.recorder import CpuRecorder
from tests.test_acceleration_gpu import EVERY, WITH_MORE_THAN_KERNELS, short  # noqa: F401 - a fixture

# ---------------------------------------------------------------- what is kept in Python


class Thing:
    shared = ()

    def __init__(self):
        self.number, self.items, self.weight, self.net = 1, [1, {"a": (2, None)}], torch.zeros(2), nn.Linear(2, 2)
        self.itself, self.scaled = self, functools.partial(torch.mul, other=1)
        self.inside = lambda x: x * self.items[0]
        self.square = torch.eye(2)


CHANGED = {
    "a number": (lambda t: setattr(t, "number", 2), [".number"]),
    "in a container": (lambda t: t.items[1].update(a=(3, None)), [".items[1]['a'][0]"]),
    "one more": (lambda t: t.items.append("x"), [".items[2]"]),
    "a new attribute": (lambda t: setattr(t, "more", 0), [".more"]),
    "a tensor elsewhere": (lambda t: setattr(t, "weight", torch.zeros(2)), [".weight"]),
    "a mode": (lambda t: t.net.eval(), [".net.training"]),
    "a parameter that is frozen": (
        lambda t: t.net.bias.requires_grad_(False),
        [".net._parameters['bias']"],
    ),
    "what a partial was given": (lambda t: t.scaled.keywords.update(other=2), [".scaled.keywords['other']"]),
    "strides": (lambda t: t.square.t_(), [".square"]),
    "of the class": (lambda t: t.shared.append(1), [".Thing.shared[0]"]),
    "values of a tensor": (lambda t: t.weight.add_(1), []),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_what_changes_is_found(kind):
    thing, Thing.shared = Thing(), []
    before = python_state(thing)
    assert python_state(thing) == before and not unknown(before)
    change, paths = CHANGED[kind]
    change(thing)
    assert changes(before, python_state(thing)) == paths


def test_what_cannot_be_looked_into_is_named():
    thing = Thing()
    thing.net.table = np.zeros(3)
    thing.random = random.Random(0)
    assert unknown(python_state(thing)) == [".net.table", ".random"]


def test_a_variable_of_a_function_is_looked_at_and_a_function_is_itself():
    thing, scale = Thing(), 1
    thing.inside = lambda x: x * scale
    before = python_state(thing)
    scale = 2
    assert changes(before, python_state(thing)) == [".inside.scale"]
    for _ in range(3):  # where one lay, the next one may lie
        before, thing.inside = python_state(thing), None
        thing.inside = lambda x: x
        assert changes(before, python_state(thing))[0] == ".inside"


def test_a_tensor_that_python_may_read_is_looked_at_more_closely():
    thing = Thing()
    before = python_state(thing, "cuda")
    thing.weight.add_(1)
    assert changes(before, python_state(thing, "cuda")) == [".weight on the cpu"]


# ---------------------------------------------------------------- whole runs


@pytest.fixture
def counted(monkeypatch):
    """Whole steps can be recorded on the CPU; gives how often something was recorded and replayed."""
    count = {"recorded": 0, "replayed": 0}

    class Counting(CpuRecorder):
        def record(self, function):
            count["recorded"] += 1
            return super().record(function)

        def replay(self):
            count["replayed"] += 1
            super().replay()

    def one_hot(targets, classes):  # PyTorch's looks at the values, on a CPU alone
        return torch.zeros(*targets.shape, classes, dtype=torch.int64).scatter_(-1, targets[..., None], 1)

    monkeypatch.setattr(nn.functional, "one_hot", one_hot)
    monkeypatch.setitem(whole_step.RECORDERS, "cpu", Counting)
    refused = ltcore.plan.acceleration.refused
    for module in (ltcore.plan.checks, ltcore.training.acceleration):
        monkeypatch.setattr(module, "refused", lambda stage, device, why: refused(stage, "cuda", why))
    return count


class Steps(Observer):
    """Keeps each step's losses; rates are in memory, as whole steps have them; ends the run after some steps."""

    def __init__(self, until=None):
        self.losses, self.records, self.until = [], [], until

    def stage_started(self, loop):
        if loop.optimizer.param_groups[0].get("fused"):
            rates_as_tensors(loop.optimizer, torch.device("cpu"))

    def losses_computed(self, loop, losses):
        self.losses.append((loop.stage.name, {name: value.item() for name, value in losses.items()}))

    def step_ended(self, loop):
        if len(self.losses) == self.until:
            raise KeyboardInterrupt

    def stage_ended(self, loop):
        self.records.append(loop.position.acceleration)


def run(path, out, how="step_graphs", until=None, resume=False):
    steps = Steps(until)
    stages = [stage.name for stage in load_recipe(path).recipe.stages]
    loaded = load_recipe(path, [f"stages.{name}.accelerate={how}" for name in stages])
    _, folder = execute(loaded, out, resume, Reporter(io.StringIO()), observers=[steps])
    weights = [load_file(each) for each in sorted((folder / "checkpoints").glob("stage-*.safetensors"))]
    return steps, weights


def same(one, other):
    assert [each.keys() for each in one] == [each.keys() for each in other]
    return all(
        torch.equal(tensor.nan_to_num(), b[name].nan_to_num())
        for a, b in zip(one, other, strict=True)
        for name, tensor in a.items()
    )


def fused(path):
    """Optimisers as they are on a GPU."""
    told = json.loads(path.read_text())
    for stage in told["stages"]:
        stage["optimizer"]["fused"] = True
    path.write_text(json.dumps(told))
    return path


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.sampled(4)
def test_every_method_of_ours_trains_to_the_bit_or_says_why_not(short, tmp_path, counted, name):  # noqa: F811
    path = fused(short(name, epochs=3))
    if why := WITH_MORE_THAN_KERNELS.get(name.split("_lt_")[1]):
        with pytest.raises(LtcoreError, match=re.escape(why)):
            run(path, tmp_path / "whole")
        return
    eager, weights = run(path, tmp_path / "eager", "off")
    assert counted["replayed"] == 0
    whole, others = run(path, tmp_path / "whole")
    assert whole.losses == eager.losses and same(weights, others)
    chosen = {(record["chosen"], record["why"]) for record in whole.records}
    assert ("step_graphs", "") in chosen <= {("step_graphs", ""), ("off", "no 4 batches had the full size")}
    assert counted["replayed"] > len(whole.losses) / 2, "most steps are a replay of two graphs"


SGD = {"lr": 0.01, "momentum": 0.9, "fused": True}


@pytest.fixture
def recipe(write_recipe, offer_methods):
    """``recipe(Own, stage's changes)``: 52 images in batches of 8, so that the last batch is smaller."""

    def make(method=None, stage=None, **options):
        if method:
            offer_methods(own=method)
        base = {"name": "joint", "epochs": 3, "batch_size": 8, "optimizer": SGD}
        if method:
            base["methods"], options["methods"] = ["own"], {"own": {}}
        counts = {"use": "synthetic", "options": {"class_counts": [30, 15, 7], "image_size": 8, "test_per_class": 2}}
        return write_recipe(stages=[base | (stage or {})], data=counts, diagnostics='"off"', **options)

    return make


STAGES = {
    "plain": {},
    "adam": {"optimizer": {"name": "adamw", "lr": 0.01, "fused": True}},
    "clipped": {"clip_grad_norm": 0.05},
    "groups": {"optimizer": {**SGD, "groups": {"backbone.*": {"lr": 0.001}}}},
    "a schedule": {"schedule": {"name": "cosine"}},
    "bf16": {"precision": "bf16"},
    "frozen": {"trainable": ["classifier"]},
}


@pytest.mark.parametrize("case", STAGES)
def test_a_run_is_the_same_to_the_bit(recipe, tmp_path, counted, case):
    path = recipe(stage=STAGES[case])
    (eager, weights), (whole, others) = (run(path, tmp_path / how, how) for how in ("off", "step_graphs"))
    assert whole.losses == eager.losses and same(weights, others) and len(whole.losses) == 21
    # Three steps are eager, and three smaller batches; a step more is replayed for the comparisons.
    assert counted == {"recorded": 2, "replayed": 2 * (21 - 3 - 3) + 2}


def test_killed_and_resumed_to_the_bit(recipe, tmp_path, counted):
    path = recipe(checkpoint_seconds=0)
    whole, weights = run(path, tmp_path / "whole")
    for until in (2, 5, 11):
        with pytest.raises(KeyboardInterrupt):
            run(path, tmp_path / f"killed{until}", until=until)
        rest, others = run(path, tmp_path / f"killed{until}", resume=True)
        assert rest.losses == whole.losses[-len(rest.losses) :] and same(weights, others), until


class Halves(Method):
    """Its loss weighs less in every epoch, by an attribute of Python's."""

    interface = "1.0"

    weight = 1.0

    @hookimpl
    def on_epoch_start(self, context):
        self.weight = 0.5**context.epoch

    @hookimpl
    def compute_loss(self, logits, targets):
        return self.weight * nn.functional.cross_entropy(logits, targets, reduction="none")


class ReadsEpoch(Method):
    interface = "1.0"

    @hookimpl
    def compute_loss(self, logits, targets, context):
        return (context.epoch + 1) * nn.functional.cross_entropy(logits, targets, reduction="none")


class Draws(Method):
    """Draws noise, in the graph and outside of it, and keeps what one hook hands on to the other."""

    interface = "1.0"

    @hookimpl
    def mix_inputs(self, batch, context):
        return replace(batch, images=batch.images + 0.1 * torch.rand((), generator=context.generator))

    @hookimpl
    def augment_features(self, features, context):
        self.noise = torch.randn(features.features.shape, generator=context.generator)
        return replace(features, features=features.features + self.noise)

    @hookimpl
    def adjust_logits(self, logits, targets, context):
        return logits + self.noise.mean() + torch.rand(logits.shape, generator=context.generator)


@pytest.mark.parametrize("method", [Halves, ReadsEpoch, Draws])
def test_what_changes_between_epochs_is_recorded_anew(recipe, tmp_path, counted, method):
    path = recipe(method)
    (eager, weights), (whole, others) = (run(path, tmp_path / how, how) for how in ("off", "step_graphs"))
    assert whole.losses == eager.losses and same(weights, others)
    assert counted["recorded"] == 2 * 3 and counted["replayed"] > 2 * (21 - 3 - 3)


class FreezesLater(Method):
    """Half of what trains gets no gradient from the second epoch on."""

    interface = "1.0"

    @hookimpl
    def on_epoch_start(self, context):
        if context.epoch == 1:
            for parameter in list(context.model.backbone.parameters())[::2]:
                parameter.requires_grad_(False)

    @hookimpl
    def adjust_logits(self, logits, targets):
        return logits


class OfTheClass(Method):
    interface = "1.0"
    settings: ClassVar = {"scale": 1.0}

    @hookimpl
    def on_epoch_start(self, context):
        self.settings["scale"] = 0.5**context.epoch

    @hookimpl
    def adjust_logits(self, logits, targets):
        return logits * self.settings["scale"]


class Partial(Method):
    interface = "1.0"

    @hookimpl
    def on_epoch_start(self, context):
        if context.epoch == 0:
            self.scaled = functools.partial(torch.mul, other=1.0)
        self.scaled.keywords["other"] = 0.5**context.epoch

    @hookimpl
    def adjust_logits(self, logits, targets):
        return self.scaled(logits)


class Closure(Method):
    interface = "1.0"

    @hookimpl
    def on_epoch_start(self, context):
        if context.epoch == 0:
            scale = 1.0

            def set_scale(value):
                nonlocal scale
                scale = value

            self.set_scale, self.scaled = set_scale, lambda x: x * scale
        self.set_scale(0.5**context.epoch)

    @hookimpl
    def adjust_logits(self, logits, targets):
        return self.scaled(logits)


class AveragesInPlace(Method):
    """Its average is no buffer."""

    interface = "1.0"

    @hookimpl
    def on_stage_start(self, context):
        self.mean = torch.ones(())

    @hookimpl
    def adjust_logits(self, logits, targets):
        self.mean.mul_(0.9).add_(0.1 * logits.detach().abs().mean())
        return logits * self.mean


class SwitchesTerms(Method):
    """A classifier of its own learns from mixed batches alone."""

    interface = "1.0"
    auxiliary = ("own",)

    def __init__(self, *args):
        super().__init__(*args)
        self.own = nn.Linear(3, 3)

    @hookimpl
    def mix_inputs(self, batch, context):
        if context.step % 2:
            return batch
        share = torch.full((len(batch.targets),), 0.75)
        return replace(batch, partner_targets=batch.targets.flip(0), target_weight=share)

    @hookimpl
    def auxiliary_losses(self, features, logits):
        zero = logits.new_zeros(())
        return {"own": zero if features.partner_targets is None else self.own(logits.detach()).square().mean()}


ADAM = {"epochs": 2, "optimizer": {"name": "adamw", "lr": 0.01, "fused": True}, "trainable": ["*"]}


@pytest.mark.parametrize("method", [FreezesLater, OfTheClass, Partial, Closure, AveragesInPlace, SwitchesTerms])
def test_what_changes_elsewhere_is_seen_and_nothing_of_other_steps_stays(recipe, tmp_path, counted, method):
    path = recipe(method, ADAM if method is not FreezesLater else {"epochs": 2})
    (eager, weights), (whole, others) = (run(path, tmp_path / how, how) for how in ("off", "step_graphs"))
    assert whole.losses == eager.losses and same(weights, others) and counted["replayed"] > 10


def test_no_loss_of_an_earlier_step_lives_while_one_is_recorded(recipe, tmp_path, counted, monkeypatch):
    """What adds up gradients would live with it, on the stream of an eager step, which a recording must not touch."""
    losses, alive = [], []

    def computed(self, loop, found):
        losses.extend(weakref.ref(each) for each in found.values())

    monkeypatch.setattr(Steps, "losses_computed", computed)
    record = whole_step.RECORDERS["cpu"].record

    def recorded(self, function):
        alive.extend(each for each in losses[:3] if each() is not None)
        return record(self, function)

    monkeypatch.setattr(whole_step.RECORDERS["cpu"], "record", recorded)
    run(recipe(stage={"epochs": 1}), tmp_path / "whole")
    assert counted["recorded"] and len(losses) > 3 and not alive


class Counts(Method):
    interface = "1.0"
    count = 0

    @hookimpl
    def compute_loss(self, logits, targets):
        self.count += 1
        return nn.functional.cross_entropy(logits, targets, reduction="none")


class Looks(Method):
    interface = "1.0"

    @hookimpl
    def adjust_logits(self, logits, targets):
        return logits if logits.max().item() < 1e9 else -logits


class ReadsStep(Method):
    interface = "1.0"

    @hookimpl
    def adjust_logits(self, logits, targets, context):
        return logits * (1 + context.step)


class KeepsAnArray(Method):
    interface = "1.0"

    @hookimpl
    def on_stage_start(self, context):
        self.table = np.ones(3)

    @hookimpl
    def adjust_logits(self, logits, targets):
        return logits * float(self.table[0])


class HandsOn(Method):
    """What it draws outside of the graph is used inside it."""

    interface = "1.0"
    share = 0.0

    @hookimpl
    def mix_inputs(self, batch, context):
        self.share = float(torch.rand((), generator=context.cpu_generator))
        return batch

    @hookimpl
    def adjust_logits(self, logits, targets):
        return logits * self.share


class Watches(Method):
    interface = "1.0"

    @hookimpl
    def on_stage_start(self, context):
        context.model.backbone.register_forward_hook(lambda *_: None)

    @hookimpl
    def adjust_logits(self, logits, targets):
        return logits


class MovesWeights(Method):
    """Puts the classifier's weights into other memory behind a step."""

    interface = "1.0"

    @hookimpl
    def after_step(self, context):
        if context.step == 4:
            for parameter in context.model.classifier.parameters():
                parameter.data = 0.5 * parameter.data


class ChangesModes(Method):
    interface = "1.0"

    @hookimpl
    def after_step(self, context):
        context.model.backbone.train(context.step % 2 == 0)


class MixesLater(Method):
    """From some step on another kind of batch comes now and then, and from there on another number holds."""

    interface = "1.0"
    scale, seen = 1.0, 0

    @hookimpl
    def on_epoch_start(self, context):
        self.scale = 1.0

    @hookimpl
    def mix_inputs(self, batch, context):
        if context.step != 4:
            return batch
        self.scale = 2.0
        share = torch.full((len(batch.targets),), 0.75)
        return replace(batch, partner_targets=batch.targets.flip(0), target_weight=share)

    @hookimpl
    def adjust_logits(self, logits, targets):
        return logits * self.scale


class Averages(Method):
    """Its average is another tensor in every step."""

    interface = "1.0"

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("mean", torch.ones(()))

    @hookimpl
    def adjust_logits(self, logits, targets):
        self.mean = 0.9 * self.mean + 0.1 * logits.detach().abs().mean()
        return logits * self.mean


class Rolls(Method):
    interface = "1.0"

    @hookimpl
    def adjust_logits(self, logits, targets):
        return logits * random.random()


class LearnsToMix(Method):
    interface = "1.0"

    def __init__(self, *args):
        super().__init__(*args)
        self.shift = nn.Parameter(torch.zeros(()))

    @hookimpl
    def mix_inputs(self, batch):
        return replace(batch, images=batch.images + self.shift)


REFUSED = {
    Counts: "'own' (ltcore-tests 0.0) changes its.count in every step",
    Looks: "operation not permitted when stream is capturing",
    ReadsStep: "'own' (ltcore-tests 0.0) reads context.step in its step, which is Python's",
    KeepsAnArray: "'own' (ltcore-tests 0.0) keeps ndarray in its.table, which cannot be watched",
    HandsOn: "'own' (ltcore-tests 0.0) changes its.share in every step",
    MovesWeights: "'own' (ltcore-tests 0.0) changes modes, gradients or memory of the network's parameters between",
    ChangesModes: "'own' (ltcore-tests 0.0) changes modes, gradients or memory of the network's parameters between",
    MixesLater: "'own' (ltcore-tests 0.0) changes its.scale in every step",
    Averages: "'own' (ltcore-tests 0.0) puts another tensor in its._buffers['mean'] in every step",
    Rolls: "a step draws from Python's, NumPy's or the CPU's global random numbers",
    LearnsToMix: "a method computes what the network is given from what trains",
    Watches: "a hook of PyTorch's modules looks on at backbone",
}


@pytest.mark.parametrize("method", REFUSED)
def test_what_a_replay_would_leave_out_is_refused(recipe, tmp_path, counted, method):
    with pytest.raises(LtcoreError) as caught:
        run(recipe(method, {"trainable": ["*"]}), tmp_path / "whole")
    said = str(caught.value)
    assert said.startswith("stage 'joint': accelerate: step_graphs cannot be had: ")
    assert said.endswith("; use accelerate: graphs")
    assert REFUSED[method] in said


def test_what_comes_out_otherwise_is_refused(recipe, tmp_path, counted, monkeypatch):
    class Wrong(CpuRecorder):
        def replay(self):
            super().replay()
            for _, _, _, results in self.calls[-1:]:
                for each in results:
                    each.detach().mul_(1.01)

    monkeypatch.setitem(whole_step.RECORDERS, "cpu", Wrong)
    with pytest.raises(LtcoreError, match=r"on the first batch it differs from an eager step: its losses by 0\.01"):
        run(recipe(), tmp_path / "whole")


def test_an_update_that_comes_out_otherwise_is_refused(recipe, tmp_path, counted, monkeypatch):
    class Wrong(CpuRecorder):
        def replay(self):
            super().replay()
            for function, args, _, _ in self.calls:
                if function is not None and "sgd" in str(function):
                    with torch.no_grad():
                        args[0][0].mul_(1.01)

    monkeypatch.setitem(whole_step.RECORDERS, "cpu", Wrong)
    with pytest.raises(LtcoreError, match=r"its first update differs from an eager one by 0\.01 of what is updated"):
        run(recipe(), tmp_path / "whole")


def test_a_stage_that_is_too_short_says_so(recipe, tmp_path, counted):
    steps, _ = run(recipe(stage={"epochs": None, "iterations": 3}), tmp_path / "whole")
    assert counted["recorded"] == 0
    (record,) = steps.records
    assert record == {"asked": "step_graphs", "chosen": "off", "why": "no 4 batches had the full size"}


FUSED = "a graph holds the fused steps of 'adam', 'adamw', 'sgd'"
PLANNED = {
    "accumulate": ({"accumulate": 2}, "accumulate: 2 runs the backbone on a batch in parts"),
    "another optimiser": (
        {"optimizer": {"name": "rmsprop", "lr": 0.01}},
        FUSED,
    ),
    "not fused": ({"optimizer": {"lr": 0.01, "fused": False}}, FUSED),
}


@pytest.mark.parametrize("case", PLANNED)
def test_the_plan_refuses_what_it_knows(recipe, tmp_path, counted, case):
    stage, why = PLANNED[case]
    with pytest.raises(LtcoreError, match=re.escape(why)):
        run(recipe(stage=stage), tmp_path)


def test_without_a_gpu_one_message_says_what_to_do(recipe, tmp_path):
    with pytest.raises(LtcoreError, match=r"accelerate: step_graphs are CUDA's, and the stage trains on cpu; use auto"):
        run(recipe(), tmp_path)


def test_the_recorder_computes_nothing_while_it_records():
    """The stand-in is a graph's: what is outside stays, what comes out has no value yet, and no Python runs again."""
    weight, memory, calls = torch.ones(3, requires_grad=True), torch.zeros(3), []

    def step():
        calls.append(None)
        memory.add_(weight.detach())
        loss = (weight * memory).sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        return loss, gradient

    recorder = CpuRecorder([])
    loss, gradient = recorder.record(step)
    assert not memory.any() and loss.isnan()
    for number in (1, 2):
        recorder.replay()
        assert (memory == number).all() and loss == 3 * number and torch.equal(gradient, memory)
    assert len(calls) == 1
    with pytest.raises(RuntimeError, match="not permitted"):
        CpuRecorder([]).record(lambda: memory[memory > 0])


def test_the_benchmark_has_whole_steps(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    timing = import_module("gpu.timing")
    assert {("fp32", "step_graphs"), ("tf32", "step_graphs"), ("bf16", "step_graphs")} <= set(timing.QUICK)
