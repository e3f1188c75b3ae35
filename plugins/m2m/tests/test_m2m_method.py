import json
from types import SimpleNamespace

import pytest
import torch
from ltcore_m2m import M2m, M2mOptions
from torch import nn

import ltcore
from ltcore import Batch, Model, RecipeError, RunError
from ltcore.testing import write_short_recipe
from ltcore.testing.parts import CheckBackbone

COUNTS = torch.tensor([60, 30, 8, 2])
TARGETS = torch.repeat_interleave(torch.arange(4), COUNTS)
MEAN, STD = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.3, 0.4])[:, None, None]


def images(split, indices, transform):
    pixels = [transform(torch.zeros(3, 8, 8, dtype=torch.uint8), 0, torch.Generator()) for _ in indices]
    return (torch.stack(pixels) / 255 - MEAN) / STD


def context_of(epoch=1, step=0):
    torch.manual_seed(0)
    model, guide = (Model(CheckBackbone().build_backbone(in_channels=3), nn.Linear(8, 4), {}) for _ in range(2))
    return SimpleNamespace(
        **{"class_counts": COUNTS, "training_targets": TARGETS, "epoch": epoch, "step": step, "images": images},
        **{"model": model, "frozen_model": lambda stage: guide.eval(), "device": torch.device("cpu")},
        generator=torch.Generator().manual_seed(7),
    )


def changed(context, seed=0, **options):
    """A batch of 32 rows of all classes as it goes in, and as it comes out."""
    method = M2m(M2mOptions(start_epoch=1, beta=0.5, steps=3, **options))
    index = torch.randperm(len(TARGETS), generator=torch.Generator().manual_seed(3))[:32]
    pixels = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    batch = Batch((pixels - MEAN) / STD, TARGETS[index], index)
    method.extra_rows(indices=[index], generator=torch.Generator().manual_seed(seed), context=context)
    return method, batch, method.mix_inputs(batch=batch, context=context)


def test_defaults_are_the_published_run():
    assert M2m().options.model_dump() == {
        **{"start_epoch": 160, "guide": None, "beta": 0.999, "strength": 0.5, "confidence": 0.9},
        **{"step": 0.1, "steps": 10, "noise": 0.5},
    }


def test_paired_rows_are_replaced_by_images_and_nothing_else_is():
    context = context_of()
    context.model.train()
    method, batch, found = changed(context, confidence=0.0)
    (pairs,) = method._pairs
    rows = torch.zeros(32, dtype=torch.bool)
    rows[pairs.rows] = True
    assert 3 < rows.sum() < 30
    assert torch.equal(found.images[~rows], batch.images[~rows])
    assert (found.images[rows] != batch.images[rows]).flatten(1).any(1).all()
    assert torch.equal(found.targets, batch.targets) and torch.equal(found.source_index, batch.source_index)
    pixels = found.images * STD + MEAN
    assert pixels.min() > -1e-5 and pixels.max() < 1 + 1e-5
    # At most so far from the seeds as three steps and the noise go.
    away = (pixels[pairs.rows] - (batch.images * STD + MEAN)[pairs.seeds]).flatten(1).norm(dim=1)
    assert 0.1 < away.min() and away.max() < 3 * 0.1 + 3**0.5 * 0.5
    assert all(module.training for module in context.model.modules())
    assert all(parameter.grad is None for parameter in context.model.parameters())
    assert method.counts.tolist() == [32, len(pairs.rows), len(pairs.rows)]


def test_a_translation_is_used_where_the_guide_is_sure():
    """The threshold between what the guide says of the translations: those above replace their rows."""
    method, batch, all_used = changed(context_of(), confidence=0.0)
    rows = method._pairs[0].rows
    guide = context_of().frozen_model(None)
    sure = guide(all_used.images[rows]).softmax(1).gather(1, batch.targets[rows, None])[:, 0]
    threshold = sure.sort().values[len(rows) // 2].item() - 1e-6
    _, _, some = changed(context_of(), confidence=threshold)
    used = sure >= threshold
    assert 0 < used.sum() < len(rows)
    assert torch.equal(some.images[rows[used]], all_used.images[rows[used]])
    assert torch.equal(some.images[rows[~used]], batch.images[rows[~used]])


def test_the_guide_is_surer_of_translations_than_of_seeds():
    method, batch, found = changed(context_of(), confidence=0.0, noise=0.0, strength=0.0)
    (pairs,), guide = method._pairs, context_of().frozen_model(None)
    labels = batch.targets[pairs.rows, None]
    before, after = (
        guide(x).softmax(1).gather(1, labels) for x in (batch.images[pairs.seeds], found.images[pairs.rows])
    )
    assert (after > before).all()


def test_before_its_epoch_a_batch_is_left_alone():
    method, batch, found = changed(context_of(epoch=0))
    assert found is batch and method.counts.tolist() == [0, 0, 0]


# -- in a run ----------------------------------------------------------------------------------------------------------


def recipe(tmp_path, methods=("drs", "m2m"), name="r", guided=True, **options):
    m2m = {"start_epoch": 2, "beta": 0.5, "confidence": 0.2, "steps": 2, **options}
    guide = {"name": "guide", "epochs": 3, "methods": []}
    return write_short_recipe(
        tmp_path / f"{name}.yaml",
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods={key: {"options": {"drs": {"start_epoch": 2}, "m2m": m2m}[key]} for key in methods},
        stages=[guide, {"name": "two", "epochs": 4, "backbone": "rebuild", "classifier": "rebuild"}][not guided :],
    )


def epochs_of(file, out):
    path = ltcore.run(file, out=out).path
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["stage"] == "two"]


def test_training_is_plain_before_its_epoch_and_translated_from_then_on(tmp_path):
    plain = epochs_of(recipe(tmp_path, ["drs"], "plain"), tmp_path / "runs")
    found = epochs_of(recipe(tmp_path), tmp_path / "runs")
    same = [one["loss"] == other["loss"] for one, other in zip(plain, found, strict=True)]
    assert same == [True, True, False, False]
    assert found[1]["methods"]["m2m"] == {"translated": None, "replaced": None}
    for line in found[2:]:
        shares = line["methods"]["m2m"]
        assert 0 < shares["replaced"] <= shares["translated"] < 0.6


def test_the_guide_is_an_earlier_stage(tmp_path):
    with pytest.raises(RunError, match="no earlier stage 'nowhere'"):
        ltcore.run(recipe(tmp_path, guide="nowhere"), out=tmp_path / "runs")
    with pytest.raises(RecipeError, match="earlier"):
        ltcore.run(recipe(tmp_path, guided=False), out=tmp_path / "runs")
