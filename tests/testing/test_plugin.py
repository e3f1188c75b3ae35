"""What pytest gets: fixtures, a quick start, and nothing that acts by itself."""

import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import ltcore
from ltcore import Batch, Features, Method, Model, RunError, hookimpl
from ltcore.testing import make_batch, make_context, move_context, step_losses, write_short_recipe

_START = """
import sys
import ltcore.testing.plugin as plugin
heavy = {"torch", "numpy", "pydantic"} & set(sys.modules)
assert not heavy, heavy
assert [name for name in vars(plugin) if name.startswith("pytest_")] == []
"""


def test_the_module_is_light_and_has_no_hooks():
    subprocess.run([sys.executable, "-c", _START], check=True)


def test_the_entry_point_gives_three_fixtures_and_pytest_starts_without_torch(tmp_path):
    (tmp_path / "conftest.py").write_text(
        "import sys\ndef pytest_unconfigure():\n    print('torch imported:', 'torch' in sys.modules)\n"
    )
    words = [sys.executable, "-m", "pytest", "--fixtures", "-p", "no:cacheprovider", tmp_path]
    listed = subprocess.run(words, capture_output=True, text=True).stdout
    assert sorted(re.findall(r"^(ltcore\w+)", listed, re.MULTILINE)) == [
        "ltcore_batch",
        "ltcore_check",
        "ltcore_context",
    ]
    assert "torch imported: False" in listed


def test_a_batch(ltcore_batch):
    batch = ltcore_batch(rows=5, classes=3)
    assert isinstance(batch, Batch) and batch.images.shape == (5, 3, 8, 8)
    assert batch.targets.tolist() == [0, 1, 2, 0, 1]
    assert torch.equal(batch.images, ltcore_batch(rows=5, classes=3).images)
    assert not torch.equal(batch.images, ltcore_batch(rows=5, classes=3, seed=1).images)


def test_a_context_answers_what_a_method_may_ask(ltcore_context, ltcore_batch):
    context = ltcore_context(counts=(9, 4, 2), epoch=1, epochs=4)
    assert context.class_counts.tolist() == [9, 4, 2] and context.num_classes == 3
    assert (context.epoch, context.epochs, float(context.progress)) == (1, 4, 0.25)
    assert context.feature_shape("maps") == (8, 2, 2)
    assert context.training_features().shape == (15, 8) and context.class_means().shape == (3, 8)
    assert context.validation_features().shape == (6, 8) and len(context.validation_targets) == 6
    drawn = torch.rand(3, generator=context.generator)
    assert torch.equal(drawn, torch.rand(3, generator=ltcore_context(epoch=1).generator))
    batch = ltcore_batch()
    features = Features.of(batch, context.model.backbone(batch.images), batch.images)
    assert features.features.shape == (8, 8)


def test_making_a_context_leaves_the_global_generator_alone(ltcore_context):
    state = torch.get_rng_state()
    ltcore_context()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_context_of_what_a_test_gives():
    model, teacher = (Model(nn.Identity(), nn.Linear(5, 3), {}) for _ in range(2))
    targets, rows = torch.tensor([2, 0, 1, 0]), torch.arange(20.0).view(4, 5)
    context = make_context(
        (2, 1, 1),
        owner="mine",
        targets=targets,
        held_out=torch.tensor([1]),
        model=model,
        features=lambda split, tap: {"train": rows, "val": -rows[:1]}[split],
        earlier={"first": teacher, "second": model},
    )
    assert context.name == "mine" and context.stage_index == 2 and context.model is model
    assert torch.equal(context.training_targets, targets) and context.validation_targets.tolist() == [1]
    assert torch.equal(context.training_features(), rows) and torch.equal(context.validation_features(), -rows[:1])
    assert context.feature_shape("pooled") == (5,) and torch.equal(context.class_means()[2], rows[0])
    assert torch.equal(context.frozen_model("first").classifier.weight, teacher.classifier.weight)
    frozen = context.frozen_model().classifier.weight
    assert torch.equal(frozen, model.classifier.weight) and frozen is not model.classifier.weight
    with pytest.raises(RunError, match="there is no earlier stage 'third' here; there is 'first', 'second'"):
        context.frozen_model("third")


def test_a_context_goes_on_as_training_does():
    context = make_context()
    first = torch.rand(3, generator=context.generator)
    assert not torch.equal(first, torch.rand(3, generator=context.generator))
    assert torch.equal(first, torch.rand(3, generator=move_context(context).generator))
    assert not torch.equal(first, torch.rand(3, generator=move_context(context, step=1).generator))
    move_context(context, epoch=1, epochs=4)
    assert (context.epoch, context.epochs, context.step, float(context.progress)) == (1, 4, 1, 0.25)
    weight = context.model.classifier.weight.detach().clone()
    move_context(context, "next")
    assert (context.stage, context.stage_index, context.epoch, context.step) == ("next", 1, -1, -1)
    context.model.classifier.weight.data.zero_()
    assert torch.equal(context.frozen_model("joint").classifier.weight, weight)


class Twice(Method):
    """Adds a term, and makes logits of its own draws."""

    auxiliary = ("size",)

    @hookimpl
    def adjust_logits(self, logits, context):
        return logits + torch.rand(logits.shape, generator=context.generator)

    @hookimpl
    def auxiliary_losses(self, features):
        return {"size": features.features.square().mean()}


def test_the_terms_of_a_step():
    context, batch, weights = make_context(), make_batch(), torch.tensor([1.0, 2.0, 3.0, 4.0])
    context.model.eval()
    logits = context.model(batch.images)
    plain = step_losses(batch, {}, context, weights)
    assert list(plain) == ["classification"]
    torch.testing.assert_close(plain["classification"], nn.functional.cross_entropy(logits, batch.targets, weights))
    terms = step_losses(batch, {"a": Twice(), "b": Twice()}, context)
    drawn = [torch.rand(logits.shape, generator=make_context(owner=owner).generator) for owner in "ab"]
    expected = nn.functional.cross_entropy(logits + sum(drawn), batch.targets)
    torch.testing.assert_close(terms["classification"], expected)
    assert list(terms) == ["classification", "a/size", "b/size"] and terms["a/size"] == terms["b/size"] > 0


def test_a_recipe_of_a_short_training(tmp_path):
    small = {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}}
    stages = [{"name": "one"}, {"name": "two", "iterations": 3, "methods": [], "optimizer": {"lr": 0.1}}]
    parts = {"methods": {"focal": {}, "tau_norm": {}}, "calibrate": ["tau_norm"], "backbone": small, "stages": stages}
    done = ltcore.run(write_short_recipe(tmp_path / "r.yaml", **parts), out=tmp_path)
    first, second = done.recipe.stages
    assert (first.name, first.epochs, first.methods) == ("one", 2, ["focal"])
    assert (second.epochs, second.iterations, second.methods, second.optimizer.lr) == (None, 3, [], 0.1)
    assert done.class_counts.tolist() == [48, 24, 12, 4] and done.logits.shape == (16, 4)
    again = ltcore.run(write_short_recipe(tmp_path / "s.yaml", **parts), out=tmp_path, source=done.path)
    assert (again.logits == done.logits).all() and again.result["reused"]["stages"] == 2


def test_check(ltcore_check):
    from ltcore.testing import check_method

    assert ltcore_check is check_method
