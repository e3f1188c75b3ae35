"""Dropout and noise: against torch's own, on which rows, and in a whole run."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ltcore_feature_noise import (
    FeatureDropout,
    FeatureDropoutOptions,
    FeatureNoise,
    FeatureNoiseOptions,
    dropped,
    noisy,
)
from pydantic import ValidationError

import ltcore
from ltcore import Batch, DataError, Features

COUNTS = torch.tensor([5, 40, 20, 2])  # head at 0.2 (one class of four): class 1
BOTH = [FeatureDropout, FeatureNoise]
OFF = {FeatureDropout: {"p": 0}, FeatureNoise: {"std": 0}}


def made(kind, **options):
    method = kind(kind.Options(**options))
    method.on_run_start(SimpleNamespace(class_counts=COUNTS))
    return method


def record(rows=12, dtype=torch.float32):
    x = torch.randn(rows, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    index = torch.arange(rows)
    return Features.of(Batch(x, index % 4, index), x, None)


def fold(method, features, seed=1):
    return method.augment_features(features, SimpleNamespace(generator=torch.Generator().manual_seed(seed)))


def test_functions_equal_a_slow_loop():
    random = np.random.default_rng(0)
    x, noise, uniform = random.normal(size=(4, 5)), random.normal(size=(4, 5)), random.uniform(size=(4, 5))
    drop = [[0 if u < 0.3 else v / 0.7 for v, u in zip(*rows, strict=True)] for rows in zip(x, uniform, strict=True)]
    add = [[v + 1.5 * e for v, e in zip(*rows, strict=True)] for rows in zip(x, noise, strict=True)]
    t = torch.from_numpy
    np.testing.assert_allclose(dropped(t(x), t(uniform), 0.3), drop, rtol=1e-12)
    np.testing.assert_allclose(noisy(t(x), t(noise), 1.5), add, rtol=1e-12)


def test_dropout_drops_as_often_and_scales_as_torch_does():
    ones = torch.ones(200, 100)
    ours = dropped(ones, torch.rand(200, 100, generator=torch.Generator().manual_seed(0)), 0.3)
    theirs = torch.nn.functional.dropout(ones, 0.3)
    assert torch.equal(ours.unique(), theirs.unique())
    assert (ours == 0).float().mean().item() == pytest.approx(0.3, abs=0.015)  # 4.6 deviations of 20,000 draws


def test_noise_has_the_deviation_asked_for():
    changed = fold(made(FeatureNoise, std=0.5, classes="all"), record(400)).features - record(400).features
    assert changed.std().item() == pytest.approx(0.5, rel=0.03)  # 20,000 draws: six deviations
    assert changed.mean().item() == pytest.approx(0, abs=0.02)


def test_defaults_and_bounds():
    which = {"classes": "tail", "head_fraction": 0.2}
    assert FeatureDropoutOptions().model_dump() == which | {"p": 0.3}
    assert FeatureNoiseOptions().model_dump() == which | {"std": 0.1}
    for kind, wrong in [
        (FeatureDropoutOptions, {"p": 1}),
        (FeatureNoiseOptions, {"std": -1}),
        (FeatureNoiseOptions, {"p": 0.1}),
        (FeatureNoiseOptions, {"classes": "head"}),
        (FeatureDropoutOptions, {"head_fraction": 1}),
        (FeatureDropoutOptions, {"head_fraction": 0}),
    ]:
        with pytest.raises(ValidationError):
            kind(**wrong)
    assert FeatureNoiseOptions(head_fraction=0.01).head_fraction == 0.01


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_tail_rows_that_are_images_change(kind, dtype):
    before = replace(record(dtype=dtype), synthetic=torch.arange(12) == 3)
    after = fold(made(kind), before)
    still = (before.targets == 1) | before.synthetic
    assert after.features.dtype == dtype
    assert torch.equal(after.features[still], before.features[still])
    assert (after.features[~still] != before.features[~still]).any(1).all()
    assert torch.equal(after.synthetic, before.targets != 1)
    assert torch.equal(before.features, record(dtype=dtype).features), "what was given is not written into"


@pytest.mark.parametrize("kind", BOTH)
def test_all_rows_where_asked(kind):
    after = fold(made(kind, classes="all"), record())
    assert (after.features != record().features).any(1).all() and after.synthetic.all()


@pytest.mark.parametrize("kind", BOTH)
def test_the_same_draws_give_the_same_rows_and_others_do_not(kind):
    method = made(kind)
    assert torch.equal(fold(method, record()).features, fold(method, record()).features)
    assert not torch.equal(fold(method, record()).features, fold(method, record(), seed=2).features)


@pytest.mark.parametrize("kind", BOTH)
def test_one_class_has_no_tail(kind):
    with pytest.raises(DataError, match="no head and tail in 1 classes"):
        kind().on_run_start(SimpleNamespace(class_counts=torch.tensor([3])))


def trained(tmp_path, name, methods):
    path = tmp_path / f"{name}.yaml"
    path.write_text(f"""
data: {{use: synthetic, options: {{class_counts: [40, 16, 8, 4], image_size: 8, test_per_class: 10, noise: 20}}}}
backbone: {{use: cifar_resnet, options: {{depth: 8, width: 4}}}}
methods: {methods or "{}"}
stages:
  - name: joint
    epochs: 2
    batch_size: 16
    methods: [{"used" if methods else ""}]
    optimizer: {{name: sgd, lr: 0.1}}
""")
    return ltcore.run(path, out=tmp_path).metrics


@pytest.mark.parametrize("kind", BOTH)
def test_switched_off_it_is_the_baseline_bit_for_bit(tmp_path, kind):
    name = {FeatureDropout: "feature_dropout", FeatureNoise: "feature_noise"}[kind]
    (option,) = OFF[kind]
    plain = trained(tmp_path, "plain", "")
    assert trained(tmp_path, "off", f"{{used: {{use: {name}, options: {{{option}: 0}}}}}}") == plain
    assert trained(tmp_path, "on", f"{{used: {{use: {name}, options: {{{option}: 0.5}}}}}}") != plain
