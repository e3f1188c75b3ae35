"""Whole runs: plain before the start, exact when resumed, absent from evaluation, and beside other methods."""

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
START, EPOCHS = 2, 4
STEPS = 4  # an epoch's: 63 images in batches of 16


def recipe(tmp_path, name="r", methods=None, safa=None, epochs=EPOCHS, stages=(), calibrate=(), **stage):
    """A recipe with SAFA, or without it where `safa` is False."""
    uses = {key: {"options": options} for key, options in (methods or {}).items()}
    first = {"epochs": epochs, "methods": list(uses)}
    if safa is not False:
        uses["safa"] = {"options": {"start_epoch": START, **(safa or {})}}
        first["methods"] = [*first["methods"], "safa"]
        first["trainable"] = ["backbone", "classifier", "safa"]
    uses |= {key: {} for later in stages for key in later.get("methods", []) if key not in uses}
    uses |= {key: {} for key in calibrate}
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
        calibrate=list(calibrate),
        checkpoint_seconds=0,
    )


def run(file, out, resume=False):
    """What must be equal: the epochs' losses, the test logits, and the figures."""
    done = ltcore.run(file, out=out, resume=resume)
    lines = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    return [(line["epoch"], line["loss"]) for line in lines], done.logits.tobytes(), done.metrics


@pytest.fixture
def recorded(look_on):
    """For each epoch: the images drawn, and the backbone and classifier after it; SAFA's own weights beside them."""
    epochs = []

    def recording(run, loop):
        state = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
        shared = {name: tensor for name, tensor in state.items() if not name.startswith("methods.safa.")}
        own = {name: tensor for name, tensor in state.items() if name not in shared}
        epochs.append(([batch.tolist() for batch in loop.batches], shared, own))

    look_on(epoch_ended=recording)
    return epochs


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("methods", [{}, {"mixup": {}, "drs": {"start_epoch": 1}}], ids=["alone", "mixup_drs"])
def test_before_the_start_a_run_is_the_one_without_it_bit_for_bit(tmp_path, recorded, methods):
    plain, *_ = run(recipe(tmp_path, "plain", methods, safa=False), tmp_path)
    without = recorded.copy()
    recorded.clear()
    losses, *_ = run(recipe(tmp_path, "safa", methods), tmp_path)
    for epoch in range(START):
        assert losses[epoch] == plain[epoch]
        assert recorded[epoch][0] == without[epoch][0] and equal(recorded[epoch][1], without[epoch][1])
        assert equal(recorded[epoch][2], recorded[0][2])  # not even weight decay touches SAFA's networks
    for epoch in range(START, EPOCHS):
        assert losses[epoch][1] != plain[epoch][1] and recorded[epoch][0] != without[epoch][0]
        assert not equal(recorded[epoch][2], recorded[epoch - 1][2])
    assert {len(batch) for drawn, *_ in recorded[START:] for batch in drawn} == {16}
    assert len({len(drawn) for drawn, *_ in recorded}) == 1  # as many steps before the start and after


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


CHANGE = START * STEPS
MOMENTS = {
    "in the epoch before": CHANGE - 2,
    "between the epochs": CHANGE,
    "after the first step of the new epoch": CHANGE + 1,
    "in the epoch after": CHANGE + STEPS + 3,
}


@pytest.mark.slow
def test_a_resume_across_the_start_is_exact(tmp_path, interrupt):
    file = recipe(tmp_path, methods={"drw": {"start_epoch": START}})
    whole = run(file, tmp_path / "whole")
    for moment, step in MOMENTS.items():
        interrupt(step, file, tmp_path / moment)
        assert run(file, tmp_path / moment, resume=True) == whole, moment
        assert len(list((tmp_path / moment / "r").iterdir())) == 1  # it did go on, and not begin again


def test_evaluation_never_calls_it(tmp_path, look_on):
    calls, trained = [], []

    def begin(run, loop):
        if loop.state.epoch == START:
            for name in "EDGQ":
                getattr(loop.model.methods["safa"], name).register_forward_hook(lambda *_: calls.append("network"))

    def end(run, loop):
        trained.append(len(calls))
        if loop.state.epoch == EPOCHS - 1:  # what is evaluated from here on cannot be finite if it uses them
            for parameter in loop.model.methods["safa"].parameters():
                parameter.data.fill_(math.nan)

    look_on(epoch_started=begin, epoch_ended=end)
    _, logits, _ = run(recipe(tmp_path), tmp_path)
    assert trained[-1] > 0 and len(calls) == trained[-1]
    assert np.isfinite(np.frombuffer(logits, np.float32)).all()


MIXES = {
    "ldam_drw": {"ldam": {}, "drw": {"start_epoch": START}},
    "ldam_drs": {"ldam": {}, "drs": {"start_epoch": START}},
    "focal_class_balanced": {"focal": {}, "class_balanced": {}},
    "cdt": {"cdt": {}},
    "mixup": {"mixup": {}},
    "remix_drw": {"remix": {}, "drw": {"start_epoch": START}},
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("mix", MIXES)
def test_it_trains_beside_other_methods_and_before_other_stages(tmp_path, mix):
    later = [
        {"name": "ofa", "iterations": 2, "methods": ["ofa"], "batch_size": 16, "trainable": ["classifier"]},
        {
            "name": "crt",
            "iterations": 2,
            "batch_size": 16,
            "sampler": "class_balanced",
            "classifier": "rebuild",
            "trainable": ["classifier"],
        },
    ]
    file = recipe(tmp_path, methods=MIXES[mix], epochs=3, stages=later, calibrate=["tau_norm"])
    losses, logits, figures = run(file, tmp_path)
    assert len(losses) == 5 and all(math.isfinite(loss) for _, loss in losses)
    assert np.isfinite(np.frombuffer(logits, np.float32)).all() and 0 <= figures["top1"] <= 1


def test_what_cannot_work_is_refused_with_names(tmp_path):
    for parts, message in [
        ({"epochs": 2}, "start_epoch 2 never comes in 2 epochs"),
        ({"safa": {"tap": "layer9"}}, "acts at tap 'layer9'"),
        ({"trainable": ["backbone", "classifier"]}, "stage 'joint' does not train SAFA's networks"),
        ({"methods": {"ofa": {}}}, "'ofa' and 'safa' both lay out the batch"),
        ({"epochs": None, "iterations": 5}, "start_epoch 2 never comes in 2 epochs"),
    ]:
        with pytest.raises(RecipeError, match=message):
            run(recipe(tmp_path, **parts), tmp_path)
