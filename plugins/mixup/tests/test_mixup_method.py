import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ltcore_mixup import Mixup, MixupOptions, Remix, RemixOptions
from pydantic import ValidationError
from scipy import stats

import ltcore
from ltcore import Batch, Features, RecipeError
from ltcore.discovery.binding import Hooks
from ltcore.files.checkpoint import load
from ltcore.testing import write_short_recipe
from ltcore.training.step import classification_loss

COUNTS = torch.tensor([90, 30, 10, 9])


def context(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(generator=generator, device=torch.device("cpu"), class_counts=COUNTS, num_classes=4)


def batch(rows=16):
    generator = torch.Generator().manual_seed(9)
    return Batch(
        torch.randn(rows, 3, 4, 4, generator=generator),
        torch.randint(4, (rows,), generator=generator),
        torch.arange(rows) * 3,
    )


def order_of(before, after, share):
    """Which row each row was mixed with, found from the images."""
    others = ((after.images - share * before.images) / (1 - share)).flatten(1)
    return torch.cdist(others, before.images.flatten(1)).argmin(1)


def test_defaults_and_bounds():
    assert Mixup().options.model_dump() == {"alpha": 1.0}
    assert Remix().options.model_dump() == {"alpha": 1.0, "kappa": 3.0, "tau": 0.5}
    for kind, wrong in [
        (MixupOptions, {"alpha": -0.1}),
        (MixupOptions, {"alpha": math.inf}),
        (MixupOptions, {"kappa": 3.0}),
        (RemixOptions, {"kappa": 1.0}),
        (RemixOptions, {"tau": 1.1}),
        (RemixOptions, {"tau": -0.1}),
    ]:
        with pytest.raises(ValidationError):
            kind(**wrong)
    assert all(field.description for field in RemixOptions.model_fields.values())


@pytest.mark.parametrize("seed", range(5))
def test_mixup_is_its_definition(seed):
    before = batch()
    after = Mixup().mix_inputs(batch=before, context=context(seed))
    share = after.target_weight
    assert share.shape == (16,) and share.dtype == torch.float32 and (share == share[0]).all()
    order = order_of(before, after, share[0])
    assert order.sort().values.tolist() == list(range(16))
    torch.testing.assert_close(after.images, share[0] * before.images + (1 - share[0]) * before.images[order])
    assert torch.equal(after.targets, before.targets) and torch.equal(after.partner_targets, before.targets[order])
    assert torch.equal(after.source_index, before.source_index)


@pytest.mark.parametrize("seed", range(5))
def test_remix_differs_from_mixup_in_the_labels_only(seed):
    mixed, remixed = (kind().mix_inputs(batch=batch(), context=context(seed)) for kind in (Mixup, Remix))
    assert torch.equal(mixed.images, remixed.images)
    assert torch.equal(mixed.partner_targets, remixed.partner_targets)
    expected = []
    for share, i, j in zip(
        mixed.target_weight.tolist(), mixed.targets.tolist(), mixed.partner_targets.tolist(), strict=True
    ):
        ratio = COUNTS[i].item() / COUNTS[j].item()
        expected.append(0.0 if ratio >= 3 and share < 0.5 else 1.0 if ratio <= 1 / 3 and 1 - share < 0.5 else share)
    assert remixed.target_weight.tolist() == expected
    assert not torch.equal(mixed.target_weight, remixed.target_weight)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_the_share_follows_the_distribution(alpha):
    method, state, small = Mixup(MixupOptions(alpha=alpha)), context(), batch(2)
    shares = [method.mix_inputs(batch=small, context=state).target_weight[0].item() for _ in range(2000)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("kind", [Mixup, Remix])
def test_alpha_zero_is_the_same_batch(kind):
    before = batch()
    assert kind(kind.Options(alpha=0)).mix_inputs(batch=before, context=context()) is before


@pytest.mark.parametrize("kind", [Mixup, Remix])
def test_draws_are_the_contexts_and_nothing_else(kind):
    before = torch.random.get_rng_state()
    first, again = (kind().mix_inputs(batch=batch(), context=context(7)) for _ in range(2))
    assert torch.equal(first.images, again.images) and torch.equal(first.target_weight, again.target_weight)
    other = kind().mix_inputs(batch=batch(), context=context(8))
    assert not torch.equal(first.images, other.images)
    assert torch.equal(before, torch.random.get_rng_state())


def test_nothing_is_saved():
    assert not Mixup().state_dict() and not list(Mixup().parameters())


def test_the_loss_is_the_cross_entropy_with_soft_labels():
    mixed = Remix().mix_inputs(batch=batch(), context=context(1))
    logits = torch.randn(16, 4, generator=torch.Generator().manual_seed(2))
    soft = mixed.target_weight[:, None] * F.one_hot(mixed.targets, 4)
    soft = soft + (1 - mixed.target_weight)[:, None] * F.one_hot(mixed.partner_targets, 4)
    found = classification_loss(Hooks(*empty()), logits, Features.of(mixed, logits, None), None)
    torch.testing.assert_close(found, F.cross_entropy(logits, soft))


def empty():
    from ltcore.discovery.binding import implementations

    return implementations([]), {}


def test_mixing_twice_has_the_labels_of_all_four_in_expectation():
    # Rows of one class each, so that a row's blend says how much of each label there should be.
    images = torch.eye(4)[:, :, None, None]
    state, method = context(3), Mixup()
    total_labels = total_images = torch.zeros(4, 4)
    for _ in range(3000):
        mixed = Batch(images, torch.arange(4), torch.arange(4))
        for _ in range(2):
            mixed = method.mix_inputs(batch=mixed, context=state)
        share = mixed.target_weight[:, None]
        labels = share * F.one_hot(mixed.targets, 4) + (1 - share) * F.one_hot(mixed.partner_targets, 4)
        total_labels, total_images = total_labels + labels, total_images + mixed.images.flatten(1)
    torch.testing.assert_close(total_labels / 3000, total_images / 3000, atol=0.03, rtol=0)


# -- in a run ----------------------------------------------------------------------------------------------------------

COMMON = {
    "data": {"use": "synthetic", "options": {"class_counts": [24, 16, 8, 4], "image_size": 8, "test_per_class": 4}},
    "backbone": {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
    "checkpoint_seconds": 0,
}


def recipe(tmp_path, name, **parts):
    return write_short_recipe(tmp_path / f"{name}.yaml", **{**COMMON, **parts})


def one_stage(*methods, **more):
    return [{"methods": methods, "optimizer": {"lr": 0.05}, **more}]


def run(file, tmp_path, resume=False):
    done = ltcore.run(file, out=tmp_path / "runs", resume=resume)
    return done.result, done.path


def weights(path):
    tensors, _ = load(path / "checkpoints" / "stage-0-joint.safetensors")
    return tensors


@pytest.mark.parametrize("use", ["mixup", "remix"])
def test_a_killed_run_goes_on_with_the_same_blends(tmp_path, copy_at_checkpoint, use):
    file = recipe(tmp_path, "r", methods={use: {"options": {"alpha": 0.5}}}, stages=one_stage(use))
    copy_at_checkpoint(5, tmp_path / "killed" / "runs" / "r")  # in the second epoch
    _, whole = run(file, tmp_path)
    copy_at_checkpoint()
    _, resumed = run(file, tmp_path / "killed", resume=True)
    assert resumed != whole and resumed.name == whole.name
    with np.load(whole / "predictions.npz") as a, np.load(resumed / "predictions.npz") as b:
        assert np.array_equal(a["logits"], b["logits"])


def test_alpha_zero_is_the_baseline_bit_for_bit(tmp_path):
    _, plain = run(recipe(tmp_path, "plain", stages=one_stage()), tmp_path)
    for use in ("mixup", "remix"):
        off = recipe(tmp_path, f"off_{use}", methods={use: {"options": {"alpha": 0}}}, stages=one_stage(use))
        tensors = weights(run(off, tmp_path)[1])
        assert all(torch.equal(tensor, weights(plain)[name]) for name, tensor in tensors.items())
    on = recipe(tmp_path, "on", methods={"mixup": {}}, stages=one_stage("mixup"))
    assert any(not torch.equal(tensor, weights(plain)[name]) for name, tensor in weights(run(on, tmp_path)[1]).items())


def test_remix_with_tau_zero_is_mixup_bit_for_bit(tmp_path):
    # Under one name in the recipe, and hence with the same draws.
    made = [
        run(recipe(tmp_path, use, methods={"mix": {"use": use, "options": options}}, stages=one_stage("mix")), tmp_path)
        for use, options in [("mixup", {}), ("remix", {"tau": 0})]
    ]
    first, second = (weights(path) for _, path in made)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_methods_that_need_hard_labels_and_caches_are_refused(tmp_path):
    methods = {"mixup": {}, "ofa": {}}
    stages = [*one_stage(name="first"), *one_stage("mixup", "ofa")]
    file = recipe(tmp_path, "ofa", methods=methods, stages=stages)
    with pytest.raises(RecipeError, match=r"'ofa' .* needs hard_labels .* which 'mixup' .* breaks"):
        run(file, tmp_path)
    cached = one_stage("mixup", trainable=["classifier"], cache="eval")
    with pytest.raises(RecipeError, match=r"'mixup' .* changes the images, which cache 'eval' skips"):
        run(recipe(tmp_path, "cached", methods={"mixup": {}}, stages=cached), tmp_path)
