"""The hook that CONTRIBUTING.md adds: one declaration and one call, and it is composed, checked, planned and traced."""

import pytest
import torch

from ltcore import Method, hookimpl
from ltcore.contract import hookspecs
from ltcore.contract.hook import HOOKS, hook
from ltcore.discovery import binding
from ltcore.discovery.binding import Entry, Hooks, implementations
from ltcore.discovery.offer import Offer
from ltcore.errors import PluginError
from ltcore.plan.plan import make_plan
from ltcore.plan.text import describe
from ltcore.recipe.loading import load_recipe
from ltcore.training.step import StepForward


class Penalty(Method):
    penalties = ("size",)

    @hookimpl
    def penalise_weights(self, model):
        return {"size": sum(parameter.square().sum() for parameter in model.classifier.parameters())}


class Other(Penalty):
    @hookimpl
    def penalise_weights(self, context):
        return {"size": torch.tensor(3.0)}


@pytest.fixture(autouse=True)
def penalise_weights(monkeypatch):
    """The declaration, and the call."""

    def penalise_weights(model, context):
        """Scalar terms by name, as declared in the method's `penalties`; the recipe weighs ``method/term``."""

    monkeypatch.setattr(hookspecs, "HOOKS", HOOKS)
    declared = hook("sum", called="step", declared_in="penalties")(penalise_weights)
    monkeypatch.setattr(hookspecs, "penalise_weights", declared, raising=False)
    monkeypatch.setattr(binding, "_parsed", binding._Parsed())  # hooks are parsed once in a process
    forward = StepForward.__call__

    def and_penalties(self, *values):
        terms = forward(self, *values)
        return terms | self.hooks.call(declared, self.model)

    monkeypatch.setattr(StepForward, "__call__", and_penalties)
    yield declared
    del HOOKS["penalise_weights"]


def hooks_of(**methods):
    entries = [Entry(key, Offer(key, f"x:{key}", f"ltcore-{key}", "1.2"), method) for key, method in methods.items()]
    return Hooks(implementations(entries), {}, {"one/size": 10.0})


class Net:
    classifier = torch.nn.Linear(2, 2, bias=False)


def test_none_one_and_two(penalise_weights):
    size = Net.classifier.weight.square().sum()
    assert hooks_of().call(penalise_weights, Net) == {}
    assert hooks_of(one=Penalty()).call(penalise_weights, Net) == {"one/size": 10 * size}
    found = hooks_of(one=Penalty(), two=Other()).call(penalise_weights, Net)
    assert found == {"one/size": 10 * size, "two/size": torch.tensor(3.0)}


def test_a_term_that_is_not_declared_is_refused(penalise_weights):
    wrong = Penalty()
    wrong.penalties = ("other",)
    with pytest.raises(PluginError, match=r"'one' \(ltcore-one 1.2\) declares the penalise weights \['other'\]"):
        hooks_of(one=wrong).call(penalise_weights, Net)


def test_it_is_planned_trained_and_traced(write_recipe, offer_methods, cli, tmp_path, monkeypatch):
    offer_methods(penalty=Penalty)
    stage = {"name": "joint", "epochs": 1, "methods": ["penalty"], "optimizer": {"name": "sgd", "lr": 0.05}}
    path = write_recipe(methods={"penalty": {}}, stages=[stage])
    (planned,) = describe(make_plan(load_recipe(path)))["stages"]
    assert planned["hooks"]["penalise_weights"]["kind"] == "sum"
    monkeypatch.setenv("LTCORE_TRACE", "1")
    done = cli("run", path, "--out", tmp_path / "runs")
    assert done.code == 0 and " penalise_weights " in done.out and "warning" not in done.out
