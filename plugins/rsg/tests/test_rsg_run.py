"""Whole runs: the backbone's training is plain before the start, exact when resumed, evaluation is without it."""

import gc
import json
import math

import numpy as np
import pytest
import torch

import ltcore
from ltcore import RecipeError
from ltcore.testing import write_short_recipe
from ltcore.training.step import StepForward

COUNTS = [30, 20, 9, 3, 1]
START, EPOCHS, STEPS = 2, 4, 4  # 63 images in batches of 16


def recipe(tmp_path, name="r", methods=None, rsg=None, epochs=EPOCHS, stages=(), **stage):
    """A recipe with RSG, or without it where `rsg` is False."""
    uses = {key: {"options": options} for key, options in (methods or {}).items()}
    first = {"epochs": epochs, "methods": list(uses)}
    if rsg is not False:
        options = {"start_epoch": START, "pair_channels": 16, "centres": 3, "cesc_weight": 0.01, **(rsg or {})}
        uses["rsg"] = {"options": options}
        first["methods"] = [*first["methods"], "rsg"]
        first["trainable"] = ["backbone", "classifier", "rsg"]
    uses |= {key: {} for later in stages for key in later.get("methods", []) if key not in uses}
    optimizer = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    return write_short_recipe(
        tmp_path / f"{name}.yaml",
        data={"use": "synthetic", "options": {"class_counts": COUNTS, "image_size": 8, "test_per_class": 4}},
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods=uses,
        stages=[
            {**first, "optimizer": optimizer, **stage},
            *({"methods": [], "optimizer": optimizer, **s} for s in stages),
        ],
        checkpoint_seconds=0,
    )


def run(file, out, resume=False):
    """What must be equal: the epochs' losses, the test logits, and the figures."""
    done = ltcore.run(file, out=out, resume=resume)
    lines = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    return [(line["epoch"], line["loss"]) for line in lines], done.logits.tobytes(), done.metrics


@pytest.fixture
def recorded(look_on):
    """For each epoch: the images drawn, and the backbone and classifier after it; RSG's own weights beside them."""
    epochs = []

    def recording(run, loop):
        state = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
        shared = {name: tensor for name, tensor in state.items() if not name.startswith("methods.rsg.")}
        own = {name: tensor for name, tensor in state.items() if name not in shared}
        epochs.append(([batch.tolist() for batch in loop.batches], shared, own))

    look_on(epoch_ended=recording)
    return epochs


def changed(before, after, part):
    """Whether the weights of a part of RSG differ."""
    names = [name for name in before if name.startswith(f"methods.rsg.{part}.")]
    assert names
    return {torch.equal(before[name], after[name]) for name in names} == {False}


def test_what_trains_when(tmp_path, recorded):
    """Before the start the network trains as without RSG, bit for bit; from it on the pair network stands still."""
    run(recipe(tmp_path, "plain", {"drs": {"start_epoch": 1}}, rsg=False), tmp_path)
    without = recorded.copy()
    recorded.clear()
    run(recipe(tmp_path, "rsg", {"drs": {"start_epoch": 1}}), tmp_path)
    for epoch in range(EPOCHS):
        drawn, shared, own = recorded[epoch]
        assert drawn == without[epoch][0]  # it takes the batches as they come
        same = all(torch.equal(tensor, without[epoch][1][name]) for name, tensor in shared.items())
        assert same is (epoch < START)
        if epoch:
            before = recorded[epoch - 1][2]
            assert changed(before, own, "centres")
            assert changed(before, own, "pairs") is (epoch < START)
            assert changed(before, own, "transform") is (epoch >= START)
            assert bool(own["methods.rsg.generated"]) is (epoch >= START)


class Interrupted(BaseException):
    """What ends a run from outside; nothing catches it."""


@pytest.fixture
def interrupt(monkeypatch):
    """``interrupt(step, file, out)``: a run that ends in the forward pass of that step, counted over the epochs."""

    def run_until(last, file, out):
        real, calls = StepForward.__call__, 0

        def forward(self, *arguments):
            nonlocal calls
            if calls == last:
                raise Interrupted
            calls += 1
            return real(self, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(StepForward, "__call__", forward)
            with pytest.raises(Interrupted):
                run(file, out)
        gc.collect()  # the directory's lock goes with the run

    return run_until


@pytest.mark.slow
def test_a_resume_across_the_start_and_in_a_later_stage_is_exact(tmp_path, interrupt):
    later = {"name": "more", "epochs": 3, "batch_size": 16, "methods": ["rsg"], "trainable": ["classifier", "rsg"]}
    file = recipe(tmp_path, methods={"drw": {"start_epoch": START}}, stages=[later])
    whole = run(file, tmp_path / "whole")
    change = START * STEPS
    for step in (change - 2, change, change + 1, change + STEPS + 3, EPOCHS * STEPS + 2):
        interrupt(step, file, tmp_path / str(step))
        assert run(file, tmp_path / str(step), resume=True) == whole, step
        assert len(list((tmp_path / str(step) / "r").iterdir())) == 1  # it did go on, and not begin again


def test_evaluation_never_calls_it(tmp_path, look_on):
    def end(run, loop):
        if loop.state.epoch == EPOCHS - 1:  # what is evaluated from here on cannot be finite if it uses them
            for parameter in loop.model.methods["rsg"].parameters():
                parameter.data.fill_(math.nan)

    look_on(epoch_ended=end)
    _, logits, _ = run(recipe(tmp_path), tmp_path)
    assert np.isfinite(np.frombuffer(logits, np.float32)).all()


MIXES = {
    "ldam_drw": {"ldam": {}, "drw": {"start_epoch": START}},
    "ldam_drs_ema": {"ldam": {}, "drs": {"start_epoch": START}, "ema": {}},
    "focal_class_balanced": {"focal": {}, "class_balanced": {}},
    "safa": {"safa": {"start_epoch": START, "tap": "layer1"}},
}


@pytest.mark.parametrize("mix", MIXES)
def test_it_trains_beside_other_methods_and_before_other_stages(tmp_path, mix):
    later = [{"name": "ofa", "iterations": 2, "methods": ["ofa"], "batch_size": 16, "trainable": ["classifier"]}]
    more = {"trainable": ["backbone", "classifier", "rsg", "safa"]} if mix == "safa" else {}
    losses, logits, figures = run(recipe(tmp_path, methods=MIXES[mix], epochs=3, stages=later, **more), tmp_path)
    assert len(losses) == 4 and all(math.isfinite(loss) for _, loss in losses)
    assert np.isfinite(np.frombuffer(logits, np.float32)).all() and 0 <= figures["top1"] <= 1


def test_what_cannot_work_is_refused_with_names(tmp_path):
    for parts, message in [
        ({"epochs": 2}, "start_epoch 2 never comes in 2 epochs"),
        ({"epochs": None, "iterations": 5}, "start_epoch 2 never comes in 2 epochs"),
        ({"rsg": {"tap": "layer9"}}, "acts at tap 'layer9'"),
        ({"trainable": ["backbone", "classifier"]}, "stage 'joint' does not train RSG's centres and networks"),
        ({"methods": {"mixup": {}}}, "needs hard_labels"),
    ]:
        with pytest.raises(RecipeError, match=message):
            run(recipe(tmp_path, **parts), tmp_path)
