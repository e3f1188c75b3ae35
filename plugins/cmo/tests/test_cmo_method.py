import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ltcore_cmo import CMO, CMOOptions
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

import ltcore
from ltcore import Batch, RecipeError
from ltcore.testing import make_context, step_losses, write_short_recipe

COUNTS = torch.tensor([60, 30, 8, 2])
TARGETS = torch.repeat_interleave(torch.arange(4), COUNTS)


def context_of(epoch=4, epochs=20, step=0, seed=0):
    return make_context(COUNTS, epoch, epochs, step, seed, "cmo")


def method_of(**options):
    return CMO(CMOOptions(**options))


def donors_of(method, context, sizes=(16,) * 200, seed=0):
    return method.extra_rows(
        indices=[torch.zeros(size, dtype=torch.int64) for size in sizes],
        generator=torch.Generator().manual_seed(seed),
        context=context,
    )


def rows(number, seed):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(TARGETS), (number,), generator=generator)
    return Batch(torch.randn(number, 3, 8, 8, generator=generator), TARGETS[index], index)


def batch_of(number=16, donors=16):
    return replace(rows(number, 0), extra=rows(donors, 1))


def test_defaults_are_the_authors_and_bounds():
    assert CMO().options.model_dump() == {
        "probability": 0.5,
        "power": 1.0,
        "per": "image",
        "beta": 1.0,
        "start_epoch": 4,
        "plain_at_end": 3,
    }
    for wrong in [{"probability": 1.1}, {"power": -1}, {"beta": 0}, {"start_epoch": -1}, {"per": "row"}, {"alpha": 1}]:
        with pytest.raises(ValidationError):
            CMOOptions(**wrong)
    assert all(field.description for field in CMOOptions.model_fields.values())


def test_a_stage_without_an_epoch_for_it_is_refused():
    message = "with start_epoch 4 and plain_at_end 3 no image is ever pasted in 7 epochs"
    with pytest.raises(RecipeError, match=message):
        CMO().check_stage(SimpleNamespace(epochs=7))
    CMO().check_stage(SimpleNamespace(epochs=8))
    CMO().check_stage(SimpleNamespace(epochs=None))
    with pytest.raises(RecipeError, match=message):
        CMO().on_epoch_start(context=context_of(epoch=0, epochs=7))


# -- donors ------------------------------------------------------------------------------------------------------------


def test_images_are_pasted_in_the_epochs_of_the_authors_code():
    """There ``start_data_aug < epoch < epochs - end_data_aug``, both 3."""
    active = [epoch for epoch in range(20) if donors_of(CMO(), context_of(epoch)) is not None]
    assert active == [epoch for epoch in range(20) if 3 < epoch < 20 - 3]


def test_half_of_the_batches_have_a_donor_for_each_row():
    found = [len(block) for block in donors_of(CMO(), context_of(), sizes=(16,) * 399 + (5,))]
    assert set(found[:-1]) == {0, 16} and found[-1] in (0, 5)
    assert 150 < sum(size > 0 for size in found) < 250


def test_every_class_gives_as_many_donors_at_power_one_and_only_its_share_at_zero():
    def shares(**options):
        found = torch.cat(donors_of(method_of(**options), context_of(), sizes=(64,) * 400))
        return torch.bincount(TARGETS[found], minlength=4) / len(found)

    torch.testing.assert_close(shares(), torch.full((4,), 0.25), atol=0.02, rtol=0)
    torch.testing.assert_close(shares(power=0), COUNTS / COUNTS.sum(), atol=0.02, rtol=0)
    by_class = 1 / COUNTS / (1 / COUNTS).sum()
    torch.testing.assert_close(shares(per="class"), by_class, atol=0.02, rtol=0)


def test_a_shorter_epoch_is_the_beginning_of_a_longer_one():
    whole, part = (donors_of(CMO(), context_of(), sizes=(16,) * size) for size in (30, 11))
    assert all(torch.equal(a, b) for a, b in zip(whole, part, strict=False))


# -- pasting -----------------------------------------------------------------------------------------------------------


def test_a_batch_without_donors_is_left_as_it_is():
    method = CMO()
    for batch in (replace(batch_of(), extra=None), batch_of(donors=0)):
        found = method.mix_inputs(batch=batch, context=context_of())
        assert found.extra is None and found.partner_targets is None and found.target_weight is None
        assert torch.equal(found.images, batch.images)


def test_each_row_has_one_box_of_its_donor_and_both_labels():
    method, batch, boxes = CMO(), batch_of(), set()
    for step in range(40):
        found = method.mix_inputs(batch=batch, context=context_of(step=step))
        pasted = (found.images == batch.extra.images).all(1)
        kept = (found.images == batch.images).all(1)
        assert (pasted ^ kept).all() and (pasted == pasted[:1]).all()  # the same box for all rows
        where = torch.nonzero(pasted[0])
        if len(where):  # a box has every pixel between its corners
            height, width = (where.amax(0) - where.amin(0) + 1).tolist()
            assert len(where) == height * width
        boxes.add(pasted[0].numpy().tobytes())
        assert torch.equal(found.target_weight, torch.full((16,), 1 - len(where) / 64))
        assert torch.equal(found.partner_targets, batch.extra.targets) and found.extra is None
        for name in ("targets", "source_index"):
            assert torch.equal(getattr(found, name), getattr(batch, name))
    assert len(boxes) > 25


def test_a_step_pastes_alike_in_every_run_and_the_next_one_otherwise():
    def pasted(step, seed=0):
        return CMO().mix_inputs(batch=batch_of(), context=context_of(step=step, seed=seed)).images

    assert torch.equal(pasted(3), pasted(3))
    assert not torch.equal(pasted(3), pasted(5)) and not torch.equal(pasted(3), pasted(3, seed=1))


def test_of_a_blend_one_label_is_drawn_by_its_share():
    batch, drawn = batch_of(), []
    others = (batch.targets + 1) % 4
    blended = replace(batch, partner_targets=others, target_weight=torch.full((16,), 0.8))
    for step in range(60):
        found = CMO().mix_inputs(batch=blended, context=context_of(step=step))
        assert ((found.targets == batch.targets) | (found.targets == others)).all()
        assert torch.equal(found.partner_targets, batch.extra.targets)
        drawn.append((found.targets == batch.targets).float().mean())
    assert torch.stack(drawn).mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 4.0, 8.0])])
def test_the_loss_is_the_papers_of_both_labels(weights):
    """rho * l(z, y) + (1 - rho) * l(z, y'); with class weights a row counts with the weight of each label's share."""
    torch.manual_seed(0)
    method, context = CMO(), context_of(step=7)
    batch, model = batch_of(), context.model.eval()
    given = replace(batch, extra=None, extras={"cmo": batch.extra})
    found = step_losses(given, {"cmo": method}, context, weights)
    mixed = method.mix_inputs(batch=batch, context=context_of(step=7))
    logits, share = model(mixed.images), mixed.target_weight[0]
    assert 0.05 < share < 0.95
    first, second = (cross_entropy(logits, each.targets, reduction="none") for each in (batch, batch.extra))
    if weights is None:
        expected = share * first.mean() + (1 - share) * second.mean()
    else:
        a, b = share * weights[batch.targets], (1 - share) * weights[batch.extra.targets]
        expected = (a * first + b * second).sum() / (a + b).sum()
    torch.testing.assert_close(found["classification"], expected)


# -- in a run ----------------------------------------------------------------------------------------------------------


def recipe(tmp_path, name="r", methods=("ldam", "drw", "cmo"), **options):
    chosen = {
        "ldam": {},
        "drw": {"options": {"start_epoch": 2}},
        "mixup": {},
        "cmo": {"options": {"start_epoch": 1, "plain_at_end": 1, **options}},
    }
    return write_short_recipe(
        tmp_path / f"{name}.yaml",
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods={key: chosen[key] for key in methods},
        stages=[{"epochs": 4}],
        checkpoint_seconds=0,
    )


def run(file, out, resume=False):
    done = ltcore.run(file, out=out, resume=resume)
    return done.logits, done.result, done.path


def test_a_probability_of_zero_is_the_run_without_bit_for_bit(tmp_path):
    without, _, _ = run(recipe(tmp_path, "without", ["ldam", "drw"]), tmp_path / "runs")
    zero, _, _ = run(recipe(tmp_path, "zero", probability=0), tmp_path / "runs")
    half, _, _ = run(recipe(tmp_path, "half"), tmp_path / "runs")
    assert np.array_equal(without, zero) and not np.array_equal(without, half)


def test_a_killed_run_goes_on_exactly(tmp_path, copy_at_checkpoint):
    file = recipe(tmp_path)
    copy_at_checkpoint(15, tmp_path / "killed" / "runs" / "r")  # in the third of four epochs, which is pasted
    whole, _, path = run(file, tmp_path / "runs")
    copy_at_checkpoint()
    resumed, _, other = run(file, tmp_path / "killed" / "runs", resume=True)
    assert path != other and np.array_equal(whole, resumed)


@pytest.mark.parametrize("methods", [["mixup", "cmo"], ["cmo", "mixup"]])
def test_beside_mixup_in_either_order(tmp_path, methods):
    logits, _, path = run(recipe(tmp_path, methods=methods, probability=1), tmp_path / "runs")
    losses = [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(logits).all() and losses[-1] < losses[0]
