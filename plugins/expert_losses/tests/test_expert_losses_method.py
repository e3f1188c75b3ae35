"""SADE and BalPoE in runs: the first step's loss written out expert by expert, and what is refused."""

import io
import json

import pytest
import torch
from ltcore_expert_losses import SADE, BalPoE, BalPoEOptions, SADEOptions
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

import ltcore
from ltcore import DataError, Features, RecipeError
from ltcore.plan.plan import make_plan
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.testing.fixtures import make_batch, make_context
from ltcore.training.execute import execute

#: Training images of each class.
COUNTS = torch.tensor([24.0, 16, 8, 4])


def recipe(tmp_path, methods, adapt=("ride",)):
    """A network of three experts, and a stage of one epoch with the methods."""
    options = {"ride": {"diversity": 0, "width": 0.5}, "cosine_classifier": {"scale": 30, "init": "random"}}
    used = dict.fromkeys((*adapt, *methods))
    whole = {
        "data": {
            "use": "synthetic",
            "options": {"class_counts": COUNTS.int().tolist(), "image_size": 8, "test_per_class": 2},
        },
        "backbone": {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}, "adapt": list(adapt)},
        "methods": {name: {"options": options.get(name, {})} for name in used},
        "stages": [
            {
                "name": "experts",
                "epochs": 1,
                "batch_size": 16,
                "methods": list(methods),
                "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
            }
        ],
        "diagnostics": "off",
    }
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(whole))
    return load_recipe(path)


def test_options():
    assert SADE().options.model_dump() == {"strength": 2.0}
    assert BalPoE().options.model_dump() == {"tau_min": 0.0, "tau_max": 2.0}
    with pytest.raises(ValidationError):
        SADEOptions(strength=-1)
    with pytest.raises(ValidationError, match=r"tau_max -1\.0 lies below tau_min 0\.0"):
        BalPoEOptions(tau_max=-1)
    assert all(field.description for kind in (SADEOptions, BalPoEOptions) for field in kind.model_fields.values())


@pytest.mark.parametrize("kind", [SADE, BalPoE])
def test_every_row_has_its_experts_shift(kind):
    """Rows that a method has appended, too."""
    method, context = kind(), make_context()
    context.model.backbone.experts = 2
    method.on_run_start(context=context)
    split = Features.of(make_batch(), torch.randn(8, 3), None).split(torch.randn(16, 3), 2)
    more = split.append(torch.randn(1, 3), torch.tensor([0]), torch.tensor([0]), torch.tensor([1]))
    found = method.adjust_logits(logits=torch.zeros(17, 4), features=more)
    assert found[:8].equal(method.shifts[0].expand(8, 4)) and found[8:].equal(method.shifts[1].expand(9, 4))
    assert not method.shifts[0].equal(method.shifts[1])


def test_an_empty_class_is_refused():
    context = make_context(counts=(4, 1, 0))
    context.model.backbone.experts = 3
    with pytest.raises(DataError, match="no training images of class 2,"):
        SADE().on_run_start(context=context)


@pytest.mark.parametrize(
    "methods",
    [["ride", "sade", "cosine_classifier"], ["balpoe", "mixup", "cosine_classifier"]],
    ids=lambda methods: "+".join(methods),
)
def test_a_step_is_the_experts_losses(tmp_path, look_on, methods):
    """SADE's is the sum of three, BalPoE's the mean of three, each of both labels of the blends."""
    seen = {}

    def watch(run, loop):
        forward = loop.forward._features

        def kept(batch, *others):
            record = forward(batch, *others)
            if "record" not in seen:
                classifier = run.assembly.model.classifier
                seen.update(record=record, logits=classifier.rows(record.features, record.expert).detach())
            return record

        loop.forward._features = kept

    def first(run, loop, losses):
        seen.setdefault("loss", float(losses["classification"].detach()))

    look_on(stage_started=watch, losses_computed=first)
    out = execute(recipe(tmp_path, methods), tmp_path / "runs", False, Reporter(io.StringIO()))[1]
    record, log_prior = seen["record"], (COUNTS / COUNTS.sum()).log()
    sade = [torch.zeros(4), log_prior, log_prior - 2 * log_prior.flip(0)]  # counts descend
    shifts = sade if "sade" in methods else [0 * log_prior, log_prior, 2 * log_prior]
    total = 0.0
    for logits, shift in zip(seen["logits"].view(3, 16, 4), shifts, strict=True):
        share = record.target_weight[:16] if "mixup" in methods else torch.ones(16)
        loss = share * cross_entropy(logits + shift, record.targets[:16], reduction="none")
        if "mixup" in methods:
            other = cross_entropy(logits + shift, record.partner_targets[:16], reduction="none")
            loss = loss + (1 - share) * other
        total += float(loss.mean())
    assert seen["loss"] == pytest.approx(total if "sade" in methods else total / 3, rel=1e-5)
    run = ltcore.load(out)
    pooled = torch.from_numpy(run.features("test"))
    each = run.model.classifier.each(pooled)
    assert torch.allclose(torch.from_numpy(run.logits), each.mean(1), atol=1e-4), "the answer is the plain mean"


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"'sade' .* needs summed_experts"):
        make_plan(recipe(tmp_path, ["sade"]))
    with pytest.raises(RecipeError, match=r"'balpoe' .* needs experts \(a backbone with experts\)"):
        make_plan(recipe(tmp_path, ["balpoe"], adapt=()))
