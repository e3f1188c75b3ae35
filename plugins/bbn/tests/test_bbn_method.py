"""The method in whole runs: what it draws, how rows are mixed, what it refuses, resume, later stages."""

import gc
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ltcore_bbn import BBN
from pydantic import ValidationError

import ltcore
from ltcore import Batch, Features, RecipeError, RunError
from ltcore.export import FORMATS, export
from ltcore.plan.plan import make_plan
from ltcore.recipe.loading import load_recipe
from ltcore.testing import write_short_recipe
from ltcore.training.step import StepForward

COUNTS = [30, 20, 9, 3, 1]
EPOCHS, STEPS = 4, 4  # 63 images in batches of 16


def recipe(tmp_path, name="r", methods=None, bbn=None, stages=(), adapt=("bbn",), calibrate=(), **stage):
    uses = {**(methods or {}), "bbn": {"options": bbn or {}}}
    uses |= {key: {} for later in stages for key in later.get("methods", []) if key not in uses}
    uses |= {key: {} for key in calibrate if key not in uses}
    optimizer = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    first = {"epochs": EPOCHS, "methods": [*(methods or {}), "bbn"], "optimizer": optimizer, **stage}
    return write_short_recipe(
        tmp_path / f"{name}.yaml",
        data={"use": "synthetic", "options": {"class_counts": COUNTS, "image_size": 8, "test_per_class": 4}},
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}, "adapt": list(adapt)},
        methods=uses,
        stages=[first, *({"methods": [], "optimizer": optimizer, **later} for later in stages)],
        calibrate=list(calibrate),
        checkpoint_seconds=0,
    )


def run(file, out, resume=False):
    """What must be equal: the epochs' losses, the test logits, and the figures; and the run's directory."""
    done = ltcore.run(file, out=out, resume=resume)
    lines = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    return ([(line["epoch"], line["loss"]) for line in lines], done.logits.tobytes(), done.metrics), done.path


@pytest.fixture
def recorded(monkeypatch):
    """For each step: the record before the classifier, as the fold at `pooled` was given it and left it."""
    real, steps = StepForward._features, []

    def features(self, batch, *others):
        record = real(self, batch, *others)
        steps.append((batch, record))
        return record

    monkeypatch.setattr(StepForward, "_features", features)
    return steps


def test_rows_are_pairs_with_the_shares_of_the_epoch(tmp_path, recorded, look_on):
    seen = []
    look_on(epoch_started=lambda run, loop: seen.append((loop.batches, loop.extra["bbn"])))
    run(recipe(tmp_path), tmp_path)
    assert len(recorded) == EPOCHS * STEPS
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(COUNTS))
    for number, (batch, record) in enumerate(recorded):
        epoch, step = divmod(number, STEPS)
        share = 1 - (epoch / EPOCHS) ** 2
        rows = len(seen[epoch][0][step])
        assert batch.images.shape == (rows, 3, 16, 8) and not batch.extras
        assert torch.equal(record.targets, labels[seen[epoch][0][step]])
        assert torch.equal(record.partner_targets, labels[seen[epoch][1][step]])
        assert record.target_weight.tolist() == pytest.approx([share] * rows)
        assert torch.equal(record.source_index, seen[epoch][0][step]) and record.features.shape == (rows, 32)
        assert bool(record.features[:, 16:].any()) is (share < 1) and record.features[:, :16].any()
    drawn = torch.bincount(torch.cat([record.partner_targets for _, record in recorded]), minlength=5) / (4 * 63)
    expected = 1 / torch.tensor(COUNTS)
    assert torch.allclose(drawn, expected / expected.sum(), atol=0.08)


def test_a_row_that_another_method_made_is_left_alone(ltcore_context):
    method, context = BBN(), ltcore_context(owner="bbn", epoch=1, epochs=2)
    extra = Batch(torch.ones(3, 1, 2, 2), torch.tensor([3, 3, 2]), torch.arange(3))
    batch = Batch(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0]), torch.arange(3), extra=extra)
    mixed = method.mix_inputs(batch=batch, context=context)
    assert mixed.images[:, :, :2].sum() == 0 and mixed.images[:, :, 2:].sum() == 12 and mixed.extra is None
    assert mixed.partner_targets.tolist() == [3, 3, 2] and mixed.target_weight.tolist() == [0.75] * 3
    record = Features.of(mixed, torch.ones(3, 4), None).append(torch.ones(1, 4), torch.tensor([3]), torch.tensor([2]))
    joined = method.augment_features(features=record, context=context)
    assert joined.features.tolist() == [[1.5, 1.5, 0.5, 0.5]] * 3 + [[1.0] * 4]


def test_of_two_labels_one_is_drawn_by_their_shares(ltcore_context):
    method, context = BBN(), ltcore_context(owner="bbn", epoch=0, epochs=2)
    rows, share = 4000, torch.cat([torch.ones(2000), torch.full((2000,), 0.3)])
    extra = Batch(torch.ones(rows, 1, 1, 1), torch.full((rows,), 3), torch.arange(rows))
    zeros = torch.zeros(rows, dtype=torch.int64)
    batch = Batch(torch.zeros(rows, 1, 1, 1), zeros, zeros, zeros + 1, share, extra=extra)
    mixed = method.mix_inputs(batch=batch, context=context)
    assert not mixed.targets[:2000].any() and (mixed.partner_targets == 3).all() and (mixed.target_weight == 1).all()
    assert float(mixed.targets[2000:].double().mean()) == pytest.approx(0.7, abs=0.03)


def test_the_beta_rule_draws_once_a_step(tmp_path, recorded):
    run(recipe(tmp_path, bbn={"alpha": "beta", "beta": 0.5}), tmp_path)
    shares = [record.target_weight.unique().item() for _, record in recorded]
    assert len(set(shares)) == EPOCHS * STEPS and all(0 <= share <= 1 for share in shares)


def test_with_one_share_it_is_training_one_branch(tmp_path, look_on):
    """In the first epoch alpha is 1: the re-balancing block gets no gradient, and nothing of it is read."""
    states = []

    def keep(run, loop):
        states.append({name: tensor.clone() for name, tensor in loop.model.state_dict().items()})

    look_on(epoch_started=keep, epoch_ended=keep)
    run(recipe(tmp_path, optimizer={"name": "sgd", "lr": 0.05}), tmp_path)
    for epoch in range(EPOCHS):
        before, after = states[2 * epoch], states[2 * epoch + 1]
        for branch in ("conventional", "rebalancing"):
            key = f"backbone.{branch}.conv1.weight"
            assert torch.equal(before[key], after[key]) is (branch == "rebalancing" and epoch == 0)


class Interrupted(BaseException):
    """What ends a run from outside; nothing catches it."""


@pytest.mark.slow
@pytest.mark.parametrize("alpha", ["parabolic", pytest.param("beta", marks=pytest.mark.slow)])
def test_a_resume_is_exact(tmp_path, monkeypatch, alpha):
    later = {"name": "crt", "epochs": 2, "batch_size": 16, "sampler": "class_balanced", "trainable": ["classifier"]}
    file = recipe(tmp_path, bbn={"alpha": alpha}, stages=[later], calibrate=["tau_norm"])
    whole, _ = run(file, tmp_path / "whole")
    for last in (STEPS + 2, 2 * STEPS, EPOCHS * STEPS + 2):
        real, calls = StepForward.__call__, 0

        def forward(self, *arguments, real=real, last=last):
            nonlocal calls
            if calls == last:
                raise Interrupted
            calls += 1
            return real(self, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(StepForward, "__call__", forward)
            with pytest.raises(Interrupted):
                run(file, tmp_path / str(last))
        gc.collect()  # the directory's lock goes with the run
        assert run(file, tmp_path / str(last), resume=True)[0] == whole, last


@pytest.mark.slow
def test_it_is_exported_and_opened_again(tmp_path):
    """Each format gives the run's logits; `export` compares them itself."""
    _, path = run(recipe(tmp_path, epochs=1), tmp_path)
    saved = ltcore.load(path)
    assert saved.model.backbone.feature_dim == 32
    for to, (ending, _) in FORMATS.items():
        _, *checked = export(saved, to, tmp_path / (f"model{ending}" if to != "hub" else "hub"))
        assert checked[0].startswith("checked on the probe")


MIXES = {
    "mixup": {"mixup": {}},
    "ldam_drw": {"ldam": {}, "drw": {"options": {"start_epoch": 2}}},
    "focal_class_balanced": {"focal": {}, "class_balanced": {}},
    "ema": {"ema": {}},
    "balanced_softmax": {"balanced_softmax": {}},
}


@pytest.mark.parametrize("mix", MIXES)
def test_it_trains_beside_other_methods_and_before_other_stages(tmp_path, mix):
    stages = [{"name": "ofa", "iterations": 2, "methods": ["ofa"], "batch_size": 16, "trainable": ["classifier"]}]
    (losses, logits, figures), _ = run(recipe(tmp_path, methods=MIXES[mix], stages=stages), tmp_path)
    assert len(losses) == EPOCHS + 1 and all(math.isfinite(loss) for _, loss in losses)
    assert np.isfinite(np.frombuffer(logits, np.float32)).all() and 0 <= figures["top1"] <= 1


def test_a_plain_stage_trains_the_joined_network(tmp_path, recorded):
    stages = [{"name": "plain", "epochs": 1, "batch_size": 16}]
    (losses, _, _), _ = run(recipe(tmp_path, stages=stages), tmp_path)
    batch, record = recorded[-1]
    assert math.isfinite(losses[-1][1]) and batch.images.shape[2:] == (8, 8) and record.partner_targets is None


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"adapt": ()}, "stage 'joint' trains two branches, and the backbone has one"),
        ({"bbn": {"period": 2}}, "option period is 2, and the stage has 4 epochs"),
        ({"bbn": {"period": 2}, "epochs": None, "iterations": 16}, "option period is 2, and the stage has 4 epochs"),
        ({"methods": {"cmo": {}}}, r"'cmo' .* needs single_images \(one image per row\), which 'bbn' .* breaks"),
        ({"methods": {"safa": {"options": {"tap": "layer2"}}}}, "layer2"),
        ({"methods": {"rsg": {"options": {"tap": "maps", "start_epoch": 1}}}}, "needs hard_labels"),
    ],
)
def test_what_cannot_work_is_refused_with_names(tmp_path, parts, message):
    with pytest.raises((RecipeError, RunError), match=message):
        run(recipe(tmp_path, **parts), tmp_path)


def test_defaults_and_bounds():
    assert BBN().options.model_dump() == {
        "alpha": "parabolic",
        "period": None,
        "sampling": "reversed",
        "beta": 0.2,
        "separate_epoch": 120,
    }
    for wrong in ({"alpha": "cubic"}, {"period": 0}, {"sampling": "rare"}, {"beta": 0.0}, {"separate_epoch": 0}):
        with pytest.raises(ValidationError):
            BBN.Options(**wrong)
    assert all(field.description for field in BBN.Options.model_fields.values())
    BBN(BBN.Options(period=200)).check_stage(SimpleNamespace(epochs=180))
    BBN(BBN.Options(period=179)).check_stage(SimpleNamespace(epochs=180))


def test_refusals_of_others_name_it(tmp_path):
    for parts, named in [
        ({"methods": {"safa": {"options": {"start_epoch": 1}}}}, "backbone 'cifar_resnet', adapted by 'bbn', does not"),
        ({"methods": {"other": {"use": "bbn"}}, "adapt": ("bbn", "other")}, "adapted by 'bbn', cannot be adapted"),
    ]:
        with pytest.raises(RecipeError, match=named):
            make_plan(load_recipe(recipe(tmp_path, **parts)))
