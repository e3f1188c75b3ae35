import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ltcore_sla import SLA, SLAOptions, changed_copies
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

import ltcore
from ltcore import Batch, DataError, Features, RecipeError
from ltcore.testing import write_short_recipe

COUNTS = torch.tensor([50, 20, 5])


def context_of(epoch=0):
    shape = {"feature_shape": lambda tap: (6,), "num_classes": 3, "class_counts": COUNTS}
    return SimpleNamespace(**shape, epoch=epoch)


def method_of(**options):
    torch.manual_seed(0)
    method = SLA(SLAOptions(**options))
    method.on_run_start(context=context_of())
    return method


def batch_of(channels=3):
    torch.manual_seed(1)
    targets = torch.tensor([0, 2, 1, 0, 2])
    return Batch(torch.rand(5, channels, 4, 4), targets, torch.arange(5), extra=None)


def record_of(changes, appended=0):
    """Features of five images and their copies, and rows of another method behind the images."""
    torch.manual_seed(2)
    batch = batch_of()
    copies = replace(
        batch, targets=batch.targets.repeat(changes - 1), source_index=batch.source_index.repeat(changes - 1)
    )
    own, extra = (
        Features.of(batch, torch.randn(5, 6), None),
        Features.of(copies, torch.randn(5 * (changes - 1), 6), None),
    )
    if appended:
        own = own.append(torch.randn(appended, 6), own.targets[:appended], own.source_index[:appended])
    return replace(own, extra=extra)


def losses_of(method, record, epoch=0):
    logits = torch.linspace(-1, 1, len(record.targets) * 3).view(-1, 3)
    return method.auxiliary_losses(features=record, logits=logits, context=context_of(epoch))


def test_defaults_and_bounds():
    assert SLA().options.model_dump() == {
        **{"rotations": 4, "colours": 1, "temperature": 1.0, "max_margin": None, "scale": 30.0},
        **{"reweight_epoch": None, "beta": 0.9999},
    }
    for wrong in [{"rotations": 3}, {"colours": 2}, {"temperature": 0}, {"rotations": 1, "colours": 1}]:
        with pytest.raises(ValidationError):
            SLAOptions(**wrong)


def test_copies_go_behind_the_batch_with_its_labels():
    batch, method = batch_of(), method_of(rotations=2, colours=3)
    assert [len(each) for each in method.extra_rows(indices=[torch.arange(5), torch.arange(3)])] == [0, 0]
    found = method.mix_inputs(batch=batch)
    assert torch.equal(found.images, batch.images)
    assert torch.equal(found.extra.images, changed_copies(batch.images, 2, 3))
    assert found.extra.targets.tolist() == batch.targets.tolist() * 5
    assert found.extra.source_index.tolist() == list(range(5)) * 5


def test_colours_need_three_channels():
    with pytest.raises(DataError, match="images have 1 channels, and option colours is for 3"):
        method_of(colours=3).mix_inputs(batch=batch_of(channels=1))


@pytest.mark.parametrize("margin", [None, 0.5])
@pytest.mark.parametrize("epoch", [3, 4])
def test_the_joint_loss_is_a_loop_over_copies(margin, epoch):
    """Class c's margin and weight are those of all its joint labels; weights come from their epoch on."""
    method, record = method_of(rotations=4, max_margin=margin, scale=10.0, reweight_epoch=4, beta=0.9), record_of(4)
    found = losses_of(method, record, epoch)["joint"]
    total = weights = 0.0
    numbers = [(1 - 0.9) / (1 - 0.9**count) for count in COUNTS.tolist()]
    for change in range(4):
        for row, label in enumerate(record.targets.tolist()):
            features = record.features[row] if not change else record.extra.features[(change - 1) * 5 + row]
            z = method.joint(features[None])
            if margin:
                z = z.clone()
                z[0, label * 4 + change] -= 10 * 0.5 * (5 / COUNTS[label].item()) ** 0.25
            weight = numbers[label] if epoch >= 4 else 1
            total, weights = total + weight * cross_entropy(z, torch.tensor([label * 4 + change])), weights + weight
    torch.testing.assert_close(found, total / weights)


def test_rows_of_others_change_nothing():
    method, logits = method_of(), torch.randn(8, 3)
    beside = method.auxiliary_losses(features=record_of(4, 3), logits=logits, context=context_of())
    alone = method.auxiliary_losses(features=record_of(4), logits=logits[:5], context=context_of())
    assert all(torch.equal(alone[term], beside[term]) for term in ("joint", "distillation"))


# -- in a run ----------------------------------------------------------------------------------------------------------


def recipe(tmp_path, methods=("ldam", "sla"), trainable=("backbone", "classifier", "sla"), **options):
    return write_short_recipe(
        tmp_path / "r.yaml",
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods={key: {"options": options if key == "sla" else {}} for key in methods},
        stages=[{"epochs": 6, "trainable": list(trainable)}],
    )


def test_it_learns_to_tell_rotations_apart_beside_ldam(tmp_path):
    file = recipe(tmp_path, rotations=2, colours=3, max_margin=0.5, scale=30.0, reweight_epoch=3)
    path = ltcore.run(file, out=tmp_path / "runs").path
    losses = [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all() and losses[-1] < 0.7 * losses[0]


def test_its_classifier_must_train(tmp_path):
    with pytest.raises(RecipeError, match="sla"):
        ltcore.run(recipe(tmp_path, trainable=["backbone"]), out=tmp_path / "runs")
