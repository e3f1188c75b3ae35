"""Functions against loops and the published code's figures, the hooks one by one, and short runs on digits."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ltcore_cosine_classifier import CosineClassifier
from ltcore_fslwf import (
    BaseSampler,
    FSLwF,
    FSLwFOptions,
    attended_weights,
    class_means,
    draw_exemplars,
    exemplar_parts,
    generated_logits,
)
from pydantic import ValidationError
from scipy.special import softmax
from torch import nn

import ltcore
from ltcore import DataError, Features, RecipeError
from ltcore.testing import write_short_recipe

CLASSES, WIDTH = 6, 5


def waves(*shape):
    return (1.7 * torch.arange(math.prod(shape)).reshape(shape) + 0.3).sin()


EXEMPLARS, LABELS, BASE = 3 * waves(4, WIDTH) + 1, torch.tensor([0, 1, 0, 1]), [0, 1, 3]


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def method(**options):
    """With the numbers that the published code was run with."""
    made = FSLwF(FSLwFOptions(base_images=10, **options))
    made.base = torch.tensor([label in BASE for label in range(CLASSES)])
    made.average_gain = nn.Parameter(waves(WIDTH) + 1.5)
    if made.options.generator == "attention":
        made.attention_gain, made.keys = nn.Parameter(waves(WIDTH).cos()), nn.Parameter(waves(CLASSES, WIDTH).cos())
        made.scale, made.query = nn.Parameter(torch.tensor(3.0)), nn.Linear(WIDTH, WIDTH)
        made.query.weight = nn.Parameter(torch.eye(WIDTH) + 0.3 * waves(WIDTH, WIDTH))
        made.query.bias = nn.Parameter(0.1 * waves(WIDTH))
    return made


PUBLISHED = {
    "attention": (
        [
            [0.25200289, 1.26622367, 0.02473307, -0.13340095, 0.56700242],
            [1.22152281, 0.37045357, -0.44251198, 0.18259284, 1.29423213],
        ],
        [
            [9.64584160, -4.14493275, 9.24363327, 9.00125313, 7.21576214],
            [-4.02404499, 9.60994148, -0.60309052, -2.85529947, 4.60902977],
            [-3.51418257, -6.10044432, -6.50926495, -0.33791995, -7.44636869],
        ],
    ),
    "average": (
        [
            [-0.05789708, 1.18276227, 0.33447033, -0.10235167, 0.29093808],
            [0.91116697, 0.26052663, -0.12278374, 0.24235215, 1.00182486],
        ],
        [
            [9.64584160, -4.14493275, 9.24363327, 7.10607338, 6.71645784],
            [-4.02404499, 9.60994148, -0.60309052, -4.58503675, 5.10181188],
            [-3.51418257, -6.10044432, -6.50926495, 3.32076955, -6.58650017],
        ],
    ),
}


@pytest.mark.parametrize("generator", list(PUBLISHED))
def test_weights_and_logits_are_the_published_code_s(generator):
    made, directions = method(generator=generator), 2 * waves(CLASSES, WIDTH)
    weights = class_means(made._parts(EXEMPLARS, directions, made.base), LABELS, 2)
    expected, logits = PUBLISHED[generator]
    torch.testing.assert_close(weights, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    # The generated classes stand in the places of 2 and 5; class 4 is not there.
    rows, generated = waves(3, WIDTH) + 0.2, torch.tensor([2, 5])
    own = CosineClassifier(directions, 10.0)(rows)
    present = torch.tensor([True, True, True, True, False, True])
    found = generated_logits(own, rows, weights, generated, present, 10.0)
    torch.testing.assert_close(found[:, [0, 1, 3, 2, 5]], torch.tensor(logits), atol=1e-5, rtol=1e-5)
    assert (found[:, 4] == -1e4).all()


def test_attention_and_parts_against_a_loop():
    queries, keys, directions = (
        waves(4, WIDTH).double(),
        waves(CLASSES, WIDTH).cos().double(),
        waves(CLASSES, WIDTH).double(),
    )
    base, gains = torch.tensor([True, False, True, True, False, True]), (waves(WIDTH), waves(WIDTH).cos())
    attended = attended_weights(queries, keys, directions, base, torch.tensor(7.0))
    found = exemplar_parts(unit(EXEMPLARS.double()), attended, *gains)
    labels = [label for label in range(CLASSES) if base[label]]
    for i in range(4):
        shares = softmax([7 * float(unit(queries[i]) @ unit(keys[b])) for b in labels])
        mixed = sum(share * unit(directions[b]) for share, b in zip(shares, labels, strict=True))
        np.testing.assert_allclose(attended[i], mixed, rtol=1e-9)
        np.testing.assert_allclose(found[i], gains[0] * unit(EXEMPLARS[i].double()) + gains[1] * mixed, rtol=1e-6)


def test_weights_of_classes_taken_for_novel_get_no_gradient():
    own = waves(3, CLASSES).requires_grad_()
    weights, present = waves(2, WIDTH).requires_grad_(), torch.tensor([True] * 5 + [False])
    found = generated_logits(own, waves(3, WIDTH), weights, torch.tensor([1, 4]), present, 10.0)
    found.log_softmax(1)[:, 1].sum().backward()
    assert not own.grad[:, [1, 4, 5]].any() and own.grad[:, [0, 2, 3]].all() and weights.grad.all()


def test_exemplars_are_other_images_than_the_batch_s():
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor([30, 8, 4]))[torch.randperm(42)]
    generator, classes = torch.Generator().manual_seed(0), torch.tensor([2, 0])
    drawn = []
    for _ in range(300):
        batch = torch.randperm(42, generator=generator)[:10]
        rows = draw_exemplars(targets, batch, classes, 5, generator).view(2, 5)
        assert (targets[rows] == classes[:, None]).all()
        assert len(set(rows[1].tolist())) == 5 and not set(rows[1].tolist()) & set(batch.tolist())
        assert len(set(rows[0].tolist())) == 4  # of four images, one comes again
        drawn.append(rows[1])
    # As often as any other.
    counts = torch.bincount(torch.cat(drawn), minlength=42)[targets == 0]
    mean = 300 * 5 / 30
    assert abs(counts.float() - mean).max() < 5 * mean**0.5


def test_batches_are_of_base_classes():
    targets, base = torch.tensor([0] * 60 + [1] * 30 + [2] * 10), torch.tensor([True, True, False])
    sampler = BaseSampler(targets, base, 10)
    generator = torch.Generator().manual_seed(0)

    def drawn(distribution):
        return torch.bincount(targets[torch.cat(sampler.draw(10, distribution, generator).indices)], minlength=3)

    assert sampler.steps_per_epoch() == 10
    for distribution, share in ((None, 0.5), (torch.tensor([0.1, 0.3, 0.6]), 0.25)):
        counts = sum(drawn(distribution) for _ in range(20))
        assert counts[2] == 0 and counts.sum() == 2000
        assert abs(counts[0] - 2000 * share) < 5 * (2000 * share * (1 - share)) ** 0.5
    with pytest.raises(RecipeError, match="no base class is drawn"):
        drawn(torch.tensor([0.0, 0.0, 1.0]))


def test_dropout_is_of_the_method_s_rows_alone():
    made = method(dropout=0.25)
    rows = {"targets": torch.zeros(2000, dtype=torch.int64), "source_index": torch.arange(2000)}
    synthetic = torch.arange(2000) >= 1500
    extra = Features(torch.ones(2000, 4), **rows, synthetic=torch.zeros(2000, dtype=torch.bool))
    context = SimpleNamespace(generator=torch.Generator().manual_seed(0))
    given = Features(torch.ones(2000, 4), **rows, synthetic=synthetic, extra=extra)
    found = made.augment_features(features=given, context=context)
    assert torch.equal(found.features[1500:], torch.ones(500, 4))
    for record in (found.features[:1500], found.extra.features):
        kept = record > 0
        torch.testing.assert_close(record[kept], torch.full_like(record[kept], 4 / 3))
        assert abs(kept.float().mean() - 0.75) < 5 * (0.75 * 0.25 / record.numel()) ** 0.5
    assert method(dropout=0.0).augment_features(features=given, context=context) is given


def test_the_last_relu_is_taken_out():
    made = FSLwF()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))
    images = waves(2, 3, 8, 8)
    assert (network(images) >= 0).all()
    found = made.adapt_backbone(backbone=network)
    assert (found(images) < 0).any() and type(found[1]) is nn.ReLU
    with pytest.raises(RecipeError, match="none that is a module"):
        made.adapt_backbone(backbone=nn.Sequential(nn.Conv2d(3, 4, 3)))


def test_options():
    assert FSLwFOptions().model_dump() == {
        **{"base_images": 21, "generator": "attention", "novel_share": 0.64, "exemplars": 10, "dropout": 0.5},
        **{"attention_scale": 30.0},
    }
    for wrong in [{"novel_share": 1.0}, {"exemplars": 0}, {"dropout": 1.0}, {"generator": "none"}]:
        with pytest.raises(ValidationError):
            FSLwFOptions(**wrong)


# -- in a run ----------------------------------------------------------------------------------------------------------


def recipe(tmp_path, second=None, holdout=0, epochs=(24, 4), **options):
    cosine = {"scale": 10, "init": "random", "learn_scale": True}
    sgd = {"name": "sgd", "momentum": 0.9}
    first = {"name": "base", "epochs": epochs[0], "methods": ["base", "cosine_classifier"], "batch_size": 32}
    last = {"name": "generator", "epochs": epochs[1], "methods": ["cosine_classifier", "fslwf"], "cache": "eval"}
    last |= {"trainable": ["classifier", "fslwf"], "batch_size": 32, **(second or {})}
    return write_short_recipe(
        tmp_path / "r.yaml",
        threads=1,
        data={"use": "digits_lt", "holdout": holdout},
        backbone={"use": "timm", "options": {"model": "test_resnet"}, "adapt": ["fslwf"]},
        methods={
            "base": {"use": "class_group", "options": {"least": 20}},
            "cosine_classifier": {"options": cosine},
            "fslwf": {"options": {"base_images": 20, "exemplars": 5, "novel_share": 0.4, **options}},
        },
        stages=[{**first, "optimizer": {**sgd, "lr": 0.1}}, {**last, "optimizer": {**sgd, "lr": 0.01}}],
    )


def test_rare_classes_are_known_once_their_weights_are_generated(tmp_path):
    saved = ltcore.run(recipe(tmp_path, generator="average"), out=tmp_path / "runs")
    result = saved.result
    before, after = (torch.tensor(stage["test"]["per_class_accuracy"]) for stage in result["stages"])
    rare = torch.tensor(result["class_counts"]) < 20
    assert before[~rare].mean() > 0.7 and before[rare].mean() < 0.15
    assert after[~rare].mean() > 0.6 and after[rare].mean() > before[rare].mean() + 0.2
    # What is opened has the generated weights.
    norms = saved.model.classifier.directions.norm(dim=1)
    assert not torch.allclose(norms[rare], torch.ones(int(rare.sum())))
    assert float(saved.metrics["top1"]) == pytest.approx(result["stages"][1]["test"]["top1"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"base_images": 500}, DataError, "two base classes are needed"),
        ({"base_images": 2}, DataError, "and a novel one"),
        ({"second": {"methods": ["fslwf"]}}, RecipeError, "cosine_classifier"),
        ({"second": {"trainable": ["fslwf"]}}, RecipeError, "name classifier under trainable"),
        ({"second": {"trainable": ["classifier"]}}, RecipeError, "own parameters"),
        ({"second": {"validate_every": 1}, "holdout": 1}, RecipeError, "leave validate_every out"),
    ],
    ids=["no_base", "no_novel", "classifier", "frozen_classifier", "frozen_generator", "validations"],
)
def test_mistakes_are_one_message(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        ltcore.run(recipe(tmp_path, epochs=(1, 1), **change), out=tmp_path / "runs")
