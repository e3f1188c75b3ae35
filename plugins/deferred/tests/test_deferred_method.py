import gc
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ltcore_deferred import DRS, DRW, DRSOptions, DRWOptions, effective_number_weights
from pydantic import ValidationError

import ltcore
from ltcore import DataError, RecipeError
from ltcore.testing import write_short_recipe
from ltcore.training.step import StepForward

COUNTS = [48, 24, 12, 4]
START = 2
STEPS = 6  # an epoch's: 88 images in batches of 16


def at(epoch, counts=COUNTS):
    return SimpleNamespace(epoch=epoch, class_counts=torch.tensor(counts), num_classes=len(counts))


# -- the methods by themselves -----------------------------------------------------------------------------------------


def test_defaults_and_bounds():
    assert DRW().options.model_dump() == {"start_epoch": 160, "beta": 0.9999}
    assert DRS().options.model_dump() == {"start_epoch": 160}
    for options, wrong in [
        (DRWOptions, {"beta": 1.0}),
        (DRWOptions, {"beta": -0.1}),
        (DRWOptions, {"start_epoch": -1}),
        (DRSOptions, {"start_epoch": 1.5}),
        (DRSOptions, {"beta": 0.9}),
    ]:
        with pytest.raises(ValidationError):
            options(**wrong)
    assert all(field.description for field in DRWOptions.model_fields.values())


def test_answers_by_epoch():
    drw, drs = DRW(DRWOptions(start_epoch=3, beta=0.9)), DRS(DRSOptions(start_epoch=3))
    for epoch in range(3):
        assert drw.class_weights(context=at(epoch)) is None and drs.class_distribution(context=at(epoch)) is None
    for epoch in (3, 4, 100):
        assert torch.equal(drw.class_weights(context=at(epoch)), effective_number_weights(torch.tensor(COUNTS), 0.9))
        assert drs.class_distribution(context=at(epoch)).tolist() == [0.25] * 4
    assert DRW(DRWOptions(start_epoch=0, beta=0)).class_weights(context=at(5)) is None
    assert not drw.state_dict() and not drs.state_dict()


def test_a_class_without_images_is_an_error_with_names():
    with pytest.raises(DataError, match="method 'drw': no training images of class 1"):
        DRW(DRWOptions(start_epoch=0)).class_weights(context=at(0, [3, 0]))


# -- in a run ----------------------------------------------------------------------------------------------------------


def recipe(tmp_path, name="r", epochs=4, uses=(), extra=(), **options):
    methods = {use: {"options": {"start_epoch": START, **options.get(use, {})}} for use in uses}
    return write_short_recipe(
        tmp_path / f"{name}.yaml",
        data={"use": "synthetic", "options": {"class_counts": COUNTS, "image_size": 8, "test_per_class": 4}},
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods={**{use: {} for use in extra}, **methods},
        stages=[{"epochs": epochs}],
        checkpoint_seconds=0,
    )


def run(file, out, resume=False):
    """What must be equal: the epochs' losses, the test logits, and the figures."""
    done = ltcore.run(file, out=out, resume=resume)
    lines = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    return [(line["epoch"], line["loss"]) for line in lines], done.logits.tobytes(), done.metrics


@pytest.fixture
def recorded(look_on):
    """For each epoch that begins or goes on: its number, its weights, and how often each class was drawn."""
    epochs = []

    def recording(run, loop):
        labels = loop.state.training_targets[torch.cat(loop.batches)]
        weights = None if loop.weights is None else loop.weights.tolist()
        epochs.append((loop.state.epoch, weights, torch.bincount(labels, minlength=4).tolist()))

    look_on(epoch_started=recording)
    return epochs


def test_drw_changes_the_weights_exactly_at_its_epoch(tmp_path, recorded):
    run(recipe(tmp_path, uses=["drw"]), tmp_path)
    weights = effective_number_weights(torch.tensor(COUNTS)).tolist()
    assert recorded == [(0, None, COUNTS), (1, None, COUNTS), (2, weights, COUNTS), (3, weights, COUNTS)]


def test_drs_changes_the_draws_exactly_at_its_epoch(tmp_path, recorded):
    run(recipe(tmp_path, epochs=22, uses=["drs"]), tmp_path)
    assert [epoch for epoch, _, _ in recorded] == list(range(22))
    assert all(weights is None for _, weights, _ in recorded)
    drawn = [frequency for _, _, frequency in recorded]
    assert drawn[:START] == [COUNTS] * START
    for frequency in drawn[START:]:  # 22 of each class, with a standard deviation of 4; instance-balanced is 48 to 4
        assert sum(frequency) == 88 and all(6 <= count <= 38 for count in frequency)
    mean = np.mean(drawn[START:], axis=0)
    assert (abs(mean - 22) < 4 * math.sqrt(88 * 0.25 * 0.75 / 20)).all()


@pytest.mark.parametrize("extra", [(), ("mixup",)])
@pytest.mark.parametrize("use", ["drw", "drs"])
def test_before_its_epoch_training_is_the_baseline_bit_for_bit(tmp_path, use, extra):
    baseline, _, _ = run(recipe(tmp_path, "plain", extra=extra), tmp_path)
    losses, _, _ = run(recipe(tmp_path, "deferred", uses=[use], extra=extra), tmp_path)
    assert losses[:START] == baseline[:START]
    assert all(mine != theirs for mine, theirs in zip(losses[START:], baseline[START:], strict=True))


def test_beta_zero_is_the_baseline_bit_for_bit(tmp_path):
    without = run(recipe(tmp_path, "plain"), tmp_path)
    assert run(recipe(tmp_path, "off", uses=["drw"], drw={"beta": 0, "start_epoch": 0}), tmp_path) == without


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
    "in the last step before": CHANGE - 1,
    "between the epochs": CHANGE,
    "after the first step of the new epoch": CHANGE + 1,
    "in the epoch after": CHANGE + STEPS + 3,
}


#: Both with the moment that is theirs; all others are slow.
CASES = [
    pytest.param(uses, moment, marks=[] if uses[1:] and moment == "between the epochs" else pytest.mark.slow)
    for uses in (["drw"], ["drs"], ["drw", "drs"])
    for moment in MOMENTS
]


@pytest.mark.parametrize(("uses", "moment"), CASES)
def test_a_resume_across_its_epoch_is_exact(tmp_path, interrupt, recorded, uses, moment):
    file = recipe(tmp_path, uses=uses)
    whole = run(file, tmp_path / "whole")
    uninterrupted = recorded.copy()
    interrupt(MOMENTS[moment], file, tmp_path / "broken")
    recorded.clear()
    assert run(file, tmp_path / "broken", resume=True) == whole
    assert len(list((tmp_path / "broken" / "r").iterdir())) == 1  # it did go on, and not begin again
    # The checkpoint is that of the last step done, so the run goes on in that step's epoch.
    assert recorded == uninterrupted[(MOMENTS[moment] - 1) // STEPS :]


def test_a_recipe_whose_start_never_comes_is_refused(tmp_path):
    for use in ("drw", "drs"):
        with pytest.raises(RecipeError, match=f"stage 'joint': '{use}' .* start_epoch 2 never comes in 2 epochs"):
            run(recipe(tmp_path, epochs=2, uses=[use]), tmp_path)
    assert DRW().acts_from == DRS().acts_from == 160
