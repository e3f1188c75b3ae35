import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ltcore_bcl import strong_view
from ltcore_ssp import MoCo, MoCoOptions, RotationPrediction, momentum_contrast_loss, turned
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import ltcore
from ltcore import Batch, Features, ForExtraRows, RecipeError
from ltcore.testing import write_short_recipe
from ltcore.testing.parts import CheckBackbone

ROWS = 8


def context_of():
    torch.manual_seed(3)
    backbone = CheckBackbone().build_backbone(in_channels=3)
    generator = torch.Generator().manual_seed(1)
    return SimpleNamespace(
        feature_shape=lambda tap: (8,),
        model=SimpleNamespace(backbone=backbone),
        generator=generator,
        device=torch.device("cpu"),
    )


def batch_of(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images, targets = torch.rand(2 * ROWS, 3, 8, 8, generator=generator), torch.arange(ROWS) % 3
    views = Batch(images[ROWS:], targets, torch.arange(ROWS))
    return replace(views, images=images[:ROWS], extra=views)


def test_defaults_and_bounds():
    assert MoCo().options.model_dump() == {
        **{"temperature": 0.2, "momentum": 0.999, "queue": 65536, "embedding_dim": 128, "hidden_dim": None},
        **{"negatives": "all", "views": "both", "smallest_crop": 0.2, "blur": 0.5, "group_size": 32},
    }
    for wrong in [{"temperature": 0}, {"momentum": 1.1}, {"queue": 0}, {"negatives": "own"}, {"group_size": 1}]:
        with pytest.raises(ValidationError):
            MoCoOptions(**wrong)


def test_a_rotation_is_told_from_the_image_that_was_turned():
    context, method = context_of(), RotationPrediction()
    method.on_run_start(context=context)
    batch = batch_of()
    found = method.mix_inputs(batch=batch, context=context)
    turns = [int(turn) for turn in method._turns]
    assert sorted(turns) == [0, 0, 1, 1, 2, 2, 3, 3] and torch.equal(found.targets, batch.targets)
    assert torch.equal(found.images, turned(batch.images, torch.tensor(turns)))
    record = Features.of(found, context.model.backbone(found.images), None)
    values = [
        cross_entropy(method.head(row[None]), torch.tensor([turn]))
        for row, turn in zip(record.features, turns, strict=True)
    ]
    appended = record.append(torch.randn(2, 8), record.targets[:2], record.source_index[:2])
    for rows in (record, appended):
        torch.testing.assert_close(method.auxiliary_losses(features=rows)["rotation"], torch.stack(values).mean())


def step(method, context, seed):
    batch = method.mix_inputs(batch=batch_of(seed))
    assert batch.extra is None
    record = Features.of(replace(batch, extra=None), context.model.backbone(batch.images), None)
    return batch_of(seed), record, method.auxiliary_losses(features=record, context=context)["contrast"]


def made(**options):
    context = context_of()
    method = MoCo(MoCoOptions(**{"queue": 12, "embedding_dim": 5, "group_size": None, **options}))
    method.on_run_start(context=context)
    method.on_stage_start(context=context)
    return method, context


@pytest.mark.parametrize("negatives", ["all", "other_classes"])
def test_a_step_is_the_loss_of_queries_keys_and_queue(negatives):
    method, context = made(negatives=negatives, momentum=0.75)
    for name, value in context.model.backbone.state_dict().items():
        assert torch.equal(method.key_backbone.state_dict()[name], value)
    batch, record, loss = step(method, context, 0)
    queries = normalize(method.head(record.features), dim=1)
    method.key_backbone.train()  # the keys' batch norm always takes the statistics of its rows
    keys = normalize(method.key_head(method.key_backbone(batch.extra.images)), dim=1).detach()
    method.key_backbone.eval()
    queue = method.queue.clone()
    torch.testing.assert_close(loss, momentum_contrast_loss(queries, keys, queue, 0.2))  # no label has come yet
    with torch.no_grad():
        for parameter in (*context.model.backbone.parameters(), *method.head.parameters()):
            parameter += 1
    method.after_step(context=context)
    torch.testing.assert_close(method.queue, torch.cat([keys, queue[ROWS:]]))
    assert method.labels.tolist() == [*batch.targets.tolist(), -1, -1, -1, -1]
    followers = (*method.key_backbone.parameters(), *method.key_head.parameters())
    leaders = (*context.model.backbone.parameters(), *method.head.parameters())
    for follower, leader in zip(followers, leaders, strict=True):
        torch.testing.assert_close(follower, leader - 0.75)
    batch, record, loss = step(method, context, 1)
    spared = batch.targets[:, None] == method.labels if negatives == "other_classes" else None
    queries = normalize(method.head(record.features), dim=1)
    torch.testing.assert_close(loss, momentum_contrast_loss(queries, method._keys, method.queue, 0.2, spared))


def test_groups_of_keys_are_normalised_by_themselves():
    method, context = made(group_size=4)
    sizes = []
    method.key_backbone.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    norm = next(module for module in method.key_backbone.modules() if isinstance(module, nn.BatchNorm2d))
    step(method, context, 0)
    assert sizes == [4, 4] and norm.num_batches_tracked == 2 and not method.key_backbone.training


def test_keys_stand_in_the_order_of_the_batch():
    """With batch norm out of the way groups change nothing."""
    whole, grouped = made(), made(group_size=2)
    for method, context in (whole, grouped):
        for module in method.key_backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.forward = lambda x: x
        step(method, context, 0)
    torch.testing.assert_close(whole[0]._keys, grouped[0]._keys)


def test_what_is_changed_strongly():
    both = MoCo().image_transform()
    assert both.func is strong_view and both.keywords == {"smallest": 0.2, "blur": 0.5}
    assert isinstance(MoCo(MoCoOptions(views="keys")).image_transform(), ForExtraRows)
    assert MoCo(MoCoOptions(views="data")).image_transform() is None


# -- in a run ----------------------------------------------------------------------------------------------------------

OPTIONS = {"rotation_prediction": {}, "moco": {"queue": 64, "momentum": 0.9, "embedding_dim": 16, "views": "data"}}


def recipe(tmp_path, method, name="r", trainable=None, **stage):
    """SSP, then training with another loss by name."""
    first = {"name": "pretraining", "epochs": 6, "methods": [method], "classification": False}
    return write_short_recipe(
        tmp_path / f"{name}.yaml",
        data={"use": "digits_lt"},
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods={method: {"options": OPTIONS[method]}, **{key: {} for key in stage.get("methods", ())}},
        stages=[
            {**first, "batch_size": 32, "trainable": trainable or ["backbone", method]},
            {"name": "training", "epochs": 1, "batch_size": 32, "methods": [], **stage},
        ],
        threads=1,
    )


def run(file, out, **options):
    done = ltcore.run(file, out=out, **options)
    return done.result, done.path, done.logits


def test_its_networks_must_train(tmp_path):
    for method in OPTIONS:
        with pytest.raises(RecipeError, match="own_parameters_train"):
            run(recipe(tmp_path, method, trainable=["backbone"]), tmp_path)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", OPTIONS)
def test_another_recipe_takes_over_what_was_learned(tmp_path, method):
    """It learns more than to guess; and LDAM, whose classifier is its own, goes on from another run as from its own."""
    _, path, _ = run(recipe(tmp_path, method, "plain"), tmp_path / "runs")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "pretraining"]
    choices = {"rotation_prediction": 4, "moco": 1 + OPTIONS["moco"]["queue"]}[method]
    assert losses[-1] < 0.95 * np.log(choices)
    ldam = recipe(tmp_path, method, "ldam", methods=["ldam"])
    result, _, logits = run(ldam, tmp_path / "taken", source=path)
    assert result["reused"] == {"run": str(path), "stages": 1}
    assert np.array_equal(logits, run(ldam, tmp_path / "own")[2])
