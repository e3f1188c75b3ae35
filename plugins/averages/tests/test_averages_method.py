import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ltcore_averages import EMA, SWA, EMAOptions, SWAOptions
from pydantic import ValidationError

import ltcore
from ltcore import PluginError, RecipeError
from ltcore.files import checkpoint
from ltcore.testing import write_short_recipe

COUNTS = [48, 24, 12, 4]


def test_defaults_and_bounds():
    assert EMA().options.model_dump() == {"decay": 0.999, "warmup": True, "start_epoch": 0}
    assert SWA().options.model_dump() == {"start_epoch": 160}
    for options, wrong in [
        (EMAOptions, {"decay": 1.0}),
        (EMAOptions, {"decay": -0.1}),
        (EMAOptions, {"start_epoch": -1}),
        (SWAOptions, {"decay": 0.9}),
    ]:
        with pytest.raises(ValidationError):
            options(**wrong)
    fields = [*EMAOptions.model_fields.values(), *SWAOptions.model_fields.values()]
    assert all(field.description for field in fields)


def test_a_start_that_never_comes_is_refused(tmp_path):
    assert EMA(EMAOptions(start_epoch=5)).acts_from == SWA(SWAOptions(start_epoch=5)).acts_from == 5
    with pytest.raises(RecipeError, match="start_epoch 5 never comes in 5 epochs"):
        run(recipe(tmp_path, methods=ema(start_epoch=5), epochs=5), tmp_path)


def test_a_start_that_never_comes_in_iterations_is_refused_by_the_run(tmp_path):
    file = recipe(tmp_path, methods=ema(start_epoch=2), epochs=None, iterations=12)  # two epochs of six steps
    with pytest.raises(RecipeError, match="start_epoch 2 never comes in 2 epochs"):
        run(file, tmp_path)
    run(recipe(tmp_path, "longer", methods=ema(start_epoch=2), epochs=None, iterations=13), tmp_path)


# -- in a run ----------------------------------------------------------------------------------------------------------


def recipe(tmp_path, name="r", methods=(), extra=(), **stage):
    return write_short_recipe(
        tmp_path / f"{name}.yaml",
        data={"use": "synthetic", "options": {"class_counts": COUNTS, "image_size": 8, "test_per_class": 4}},
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods={**{each: {} for each in extra}, **dict(methods)},
        stages=[{"epochs": 3, **stage}],
        checkpoint_seconds=0,
    )


def run(file, out, resume=False):
    """The model at the end of the stage by name, its loss lines, and the run's directory."""
    path = ltcore.run(file, out=out, resume=resume).path
    model, _ = checkpoint.load(path / "checkpoints" / "stage-0-joint.safetensors")
    losses = [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    kept = {key.removeprefix("model/"): value for key, value in model.items() if "/methods." not in key}
    return kept, losses, path


def ema(**options):
    return {"ema": {"options": {"decay": 0.8, **options}}}


@pytest.fixture
def recorded(look_on):
    """Backbone and classifier after each step of the runs that follow, or after each epoch."""
    seen = {"step": [], "epoch": []}

    def keep(place):
        def note(run, loop, *_):
            state = loop.model.state_dict()
            seen[place].append({k: v.clone() for k, v in state.items() if not k.startswith("methods.")})

        return note

    look_on(step_ended=keep("step"), epoch_ended=keep("epoch"))
    return seen


def loop_average(states, share):
    expected = {}
    for done, state in enumerate(states):
        for name, value in state.items():
            if not value.is_floating_point():
                expected[name] = value
            else:
                value, part = value.double(), share(done)
                expected[name] = value if done == 0 else (1 - part) * expected[name] + part * value
    return expected


@pytest.mark.parametrize(
    ("methods", "place", "first", "share"),
    [
        (ema(warmup=False), "step", 0, lambda done: 0.2),
        (ema(warmup=False, start_epoch=1), "step", 6, lambda done: 0.2),
        ({"swa": {"options": {"start_epoch": 1}}}, "epoch", 1, lambda done: 1 / (done + 1)),
    ],
    ids=["ema", "ema later", "swa"],
)
def test_a_stage_ends_with_the_average_of_what_it_came_by(tmp_path, recorded, methods, place, first, share):
    model, losses, _ = run(recipe(tmp_path, methods=methods), tmp_path / "with")
    states = recorded[place][:]
    expected = loop_average(states[first:], share)
    assert model.keys() == expected.keys() and not torch.equal(
        model["classifier.weight"], states[-1]["classifier.weight"]
    )
    for name, value in expected.items():
        torch.testing.assert_close(model[name].double(), value.double(), rtol=1e-4, atol=1e-5)
    _, plain, _ = run(recipe(tmp_path, "plain"), tmp_path / "without")
    assert losses == plain  # training never sees it


def test_a_decay_of_zero_is_the_run_without_bit_for_bit(tmp_path):
    model, _, _ = run(recipe(tmp_path, methods=ema(decay=0)), tmp_path)
    plain, _, _ = run(recipe(tmp_path, "plain"), tmp_path)
    assert all(torch.equal(model[name], plain[name]) for name in plain)


@pytest.mark.parametrize("methods", [ema(), {"swa": {"options": {"start_epoch": 1}}}], ids=["ema", "swa"])
def test_a_killed_run_goes_on_exactly(tmp_path, copy_at_checkpoint, methods):
    file = recipe(tmp_path, methods=methods, extra=["ldam"])  # whose classifier has other parameters than core's
    copy_at_checkpoint(14, tmp_path / "killed" / "runs" / "r")
    _, _, whole = run(file, tmp_path / "runs")
    copy_at_checkpoint()
    _, _, resumed = run(file, tmp_path / "killed" / "runs", resume=True)
    with np.load(whole / "predictions.npz") as a, np.load(resumed / "predictions.npz") as b:
        assert resumed != whole and np.array_equal(a["logits"], b["logits"])


def test_what_a_stage_freezes_stays(tmp_path, recorded):
    file = recipe(tmp_path, methods=ema(), trainable=["classifier"])
    model, _, _ = run(file, tmp_path)
    last = recorded["step"][-1]
    assert all(torch.equal(value, last[name]) for name, value in model.items() if name.startswith("backbone."))
    assert not torch.equal(model["classifier.weight"], last["classifier.weight"])


def test_a_larger_classifier_is_refused_by_name():
    backbone, classifier = torch.nn.Linear(2, 3), torch.nn.Bilinear(3, 20, 4)
    backbone.feature_dim, backbone.experts = 3, 1
    model = SimpleNamespace(backbone=backbone, classifier=torch.nn.Linear(3, 4))
    context = SimpleNamespace(model=model, num_classes=4, name="mean", epoch=0)
    method = EMA()
    method.on_run_start(context=context)
    method.after_step(context=context)
    model.classifier = classifier
    with pytest.raises(PluginError, match=r"'mean' has room for a classifier of about .* one, and Bilinear is larger"):
        method.after_step(context=context)
