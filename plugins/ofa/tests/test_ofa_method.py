"""The method in a small run: phase one's model, the sampler, the fold at a tap, the gradients."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from ltcore_ofa import OFA
from ltcore_ofa import method as ofa_method
from ltcore_ofa.functional import class_activation_maps, fuse_pooled, fuse_spatial, generic_mask, specific_mask
from pydantic import ValidationError
from torch import nn

from ltcore import Backbone, Batch, DataError, Features, Model, RecipeError
from ltcore.contract.model import set_trainable
from ltcore.testing import make_context, move_context

COUNTS = torch.tensor([4, 40, 3, 20, 8])  # head at 0.9: classes 1, 3, 4 (68 of 75 images); tail: 0 and 2
BATCH = 16  # N_t = 2, N_a = 3


class Tiny(Backbone):
    """Two strided convolutions; 8x8 images give 4x4 at layer1 and 3x3 maps."""

    feature_dim = 6
    inner_taps = ("layer1",)

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(5, 6, 2), nn.ReLU())

    def forward_maps(self, images):
        return self.layer2(self.layer1(images))


class Run:
    """What a trainer keeps, as far as OFA asks."""

    def __init__(self, counts=COUNTS, device="cpu", rebuilt=False, **options):
        torch.manual_seed(0)
        classes = len(counts)
        self.method = OFA(OFA.Options(**options))
        self.model = Model(Tiny(), nn.Linear(6, classes), {"ofa": self.method}).to(device)
        earlier = {"representation": self.model}
        self.context = make_context(counts, seed=3, owner="ofa", model=self.model, earlier=earlier, device=device)
        self.phase_one = self.context.frozen_model()
        self.targets = self.context.training_targets
        self.images = self.context.images("train", torch.arange(len(self.targets)))
        if rebuilt:
            nn.init.normal_(self.model.classifier.weight)

    def start(self, batch_size=BATCH):
        self.method.on_run_start(context=self.context)
        self.method.on_stage_start(context=self.context)
        return self.begin(batch_size)

    def begin(self, batch_size=BATCH):
        sampler = self.method.build_sampler(batch_size=batch_size, context=self.context)
        self.drawn = sampler.draw(sampler.steps_per_epoch(), None, torch.Generator().manual_seed(5))
        self.extra = self.method.extra_rows(
            indices=self.drawn.indices, generator=torch.Generator().manual_seed(7), context=self.context
        )
        return self

    def batch(self, step=0):
        move_context(self.context, epoch=0, step=step)
        batch = self.rows(self.drawn.indices[step])
        return replace(batch, extras={"ofa": self.rows(self.extra[step])}) if self.extra else batch

    def rows(self, index):
        device = self.images.device
        rows = self.images[index.to(device)], self.targets[index].to(device), index.to(device)
        return Batch(*rows, layout=self.drawn.layout)

    def fold(self, step=0, images=True, cast=None):
        """Features before and after OFA, and the pooled features that follow."""
        batch, seen = self.batch(step), {}

        def change(x):
            x = x if cast is None else x.to(cast)
            seen["before"] = shown(Features.of(batch, x, batch.images if images else None))
            seen["after"] = self.method.augment_features(features=seen["before"], context=self.context)
            return seen["after"].features

        pooled = self.model.backbone.run(batch.rows, at={self.method.tap: change})
        return seen["before"], seen["after"], pooled


def shown(features):
    """As the hook sees it."""
    return replace(features, extra=features.extras.get("ofa"))


# What is learned when the stage starts.


def test_phase_one_is_kept_in_buffers():
    run = Run().start()
    assert torch.equal(run.method.cam_weight, run.phase_one.classifier.weight)
    scores = run.phase_one(run.images).softmax(1)
    for label in range(5):
        mean = scores[run.targets == label].mean(0)
        ranked = [c for c in mean.argsort(descending=True).tolist() if c != label]
        assert run.method.confusing_classes[label].tolist() == ranked[:3]


def test_buffers_do_not_depend_on_the_chunks(monkeypatch):
    whole = Run().start().method.confusing_classes
    monkeypatch.setattr(ofa_method, "_SCORES_AT_ONCE", 35)  # seven images at a time
    assert torch.equal(Run().start().method.confusing_classes, whole)


def test_a_rebuilt_classifier_is_not_taken_for_phase_one():
    run, plain = Run(rebuilt=True).start(), Run().start()
    assert not torch.equal(run.model.classifier.weight, run.phase_one.classifier.weight)
    assert torch.equal(run.method.cam_weight, plain.method.cam_weight)
    assert torch.equal(run.method.confusing_classes, plain.method.confusing_classes)


def test_a_resumed_stage_goes_on_from_the_buffers():
    run = Run().start()
    resumed = Run()
    resumed.method.on_run_start(context=resumed.context)
    resumed.method.load_state_dict(run.method.state_dict())
    resumed.begin()
    assert set(run.method.state_dict()) == {"confusing_classes", "cam_weight"}
    assert torch.equal(torch.stack(resumed.drawn.indices), torch.stack(run.drawn.indices))
    assert torch.equal(torch.stack(resumed.extra), torch.stack(run.extra))
    assert torch.equal(resumed.fold(2)[1].features, run.fold(2)[1].features)


def test_data_without_a_tail_is_refused():
    run = Run(counts=torch.full((5,), 10))
    with pytest.raises(DataError, match=r"head_ratio 0\.9 all 5 classes are head"):
        run.method.on_run_start(context=run.context)


def test_too_few_classes_to_be_confused_with_are_refused():
    run = Run(counts=torch.tensor([50, 30, 5]))
    with pytest.raises(RecipeError, match="confusing is 3, but a class has only 2 other classes"):
        run.method.on_run_start(context=run.context)
    without = Run(counts=torch.tensor([50, 30, 5]), augmented=0)
    without.method.on_run_start(context=without.context)  # asks for none


# The options and the stage.


def test_defaults_are_the_papers():
    assert OFA().options.model_dump() == {
        "tap": "maps",
        "head_ratio": 0.9,
        "specific_threshold": 0.8,
        "generic_threshold": 0.2,
        "confusing": 3,
        "augmented": 3,
    }
    assert OFA().tap == "maps" and OFA(OFA.Options(tap="layer2")).tap == "layer2"
    assert OFA.requires == {"spatial_features", "hard_labels", "earlier_stage"}


@pytest.mark.parametrize(
    "options",
    [
        {"head_ratio": 0},
        {"head_ratio": 1},
        {"specific_threshold": 0.3, "generic_threshold": 0.4},
        {"confusing": 0},
        {"augmented": -1},
        {"tap": "pooled"},
        {"head_ration": 0.9},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        OFA.Options(**options)


def test_a_batch_size_is_refused_before_data_is_read():
    with pytest.raises(RecipeError, match="batch_size 100 is not a multiple of 8"):
        OFA().check_stage(SimpleNamespace(batch_size=100))
    OFA().check_stage(SimpleNamespace(batch_size=128))
    with pytest.raises(RecipeError, match=r"batch_size 15 is not a multiple of 2 = .*; use 14 or 16"):
        OFA(OFA.Options(augmented=0)).check_stage(SimpleNamespace(batch_size=15))


# The fold.


@pytest.mark.parametrize("tap", ["maps", "layer1"])
def test_augmented_tail_rows_are_appended_and_the_confusing_ones_leave(tap):
    run = Run(tap=tap).start()
    for step in range(len(run.drawn.indices)):
        before, after, pooled = run.fold(step)
        copies = torch.arange(2).repeat_interleave(3)
        assert len(before.targets) == 10 and len(before.extra.targets) == 6
        assert torch.equal(after.targets[10:], before.targets[copies])
        assert torch.equal(after.source_index[10:], before.source_index[copies])
        assert torch.isin(after.targets[[0, 1, *range(10, 16)]], torch.tensor([0, 2])).all()
        assert torch.isin(after.targets[2:10], torch.tensor([1, 3, 4])).all()
        assert torch.equal(run.targets[after.source_index], after.targets)
        assert after.synthetic.tolist() == [False] * 10 + [True] * 6
        assert after.extra is None
        for name in ("features", "targets", "source_index"):
            assert torch.equal(getattr(after, name)[:10], getattr(before, name))
        assert after.features.shape == (16, *before.features.shape[1:]) and pooled.shape == (16, 6)
        assert torch.isfinite(after.features).all()


def test_the_confusing_images_are_of_the_table_taken_in_turn():
    for augmented, confusing in ((3, 3), (1, 3), (4, 2)):
        run = Run(augmented=augmented, confusing=confusing).start(batch_size=4 * (1 + augmented))
        tails = torch.stack(run.drawn.indices)[:, :2]
        labels = run.targets[torch.stack(run.extra)]
        table = run.method.confusing_classes
        for t in range(2):
            for a in range(augmented):
                assert torch.equal(labels[:, t * augmented + a], table[run.targets[tails[:, t]], a % confusing])


@pytest.mark.parametrize("tap", ["maps", "layer1"])
def test_without_augmentation_half_is_tail_half_is_head_and_nothing_is_made(tap, monkeypatch):
    """The paper's figure 9, "No Aug": each row is an image of its own, in the sampler's order, and is trained on."""
    run = Run(tap=tap, augmented=0)
    run.features = lambda *_: pytest.fail("the training images were passed through the network")
    run.start()
    labels = run.targets[torch.stack(run.drawn.indices)]
    assert torch.isin(labels[:, :8], torch.tensor([0, 2])).all()
    assert torch.isin(labels[:, 8:], torch.tensor([1, 3, 4])).all()
    for step in range(len(run.drawn.indices)):
        before, after, pooled = run.fold(step)
        assert after is before and run.extra is None and not after.synthetic.any()
        assert torch.equal(run.targets[after.source_index], after.targets)
        batch = run.batch(step)
        assert torch.equal(pooled, run.model.backbone(batch.images))


def activations(before, weight):
    """Activation maps at `maps` of the rows, and of the confusing ones."""
    parts = (before, before.extra)
    return tuple(class_activation_maps(part.features, weight, part.targets) for part in parts)


def draws(run, locations):
    """What the method draws in this step."""
    uniform = torch.rand(6, 1 + 2 * locations, generator=move_context(run.context).generator)
    return uniform[:, 0], uniform[:, 1 : 1 + locations], uniform[:, 1 + locations :]


def test_rows_at_maps_are_the_pooled_fusion_of_their_pair():
    run = Run().start()
    before, after, _ = run.fold(1)
    activation, other = activations(before, run.phase_one.classifier.weight)
    for m in range(6):
        t = m // 3
        ratio, u_specific, u_generic = (u[m : m + 1] for u in draws(run, 9))
        expected = fuse_pooled(
            before.features[t : t + 1],
            specific_mask(activation[t : t + 1], 0.8),
            before.extra.features[m : m + 1],
            generic_mask(other[m : m + 1], 0.2),
            ratio,
            u_specific,
            u_generic,
        )
        assert torch.equal(after.features[10 + m], expected[0])


def test_rows_at_an_inner_tap_are_the_spatial_fusion_of_their_pair():
    run = Run(tap="layer1").start()
    before, after, _ = run.fold(1)
    weight = run.phase_one.classifier.weight
    maps = run.phase_one.backbone.forward_maps(run.batch(1).rows)
    targets = torch.cat([before.targets, before.extra.targets])
    raw = (maps * weight[targets][:, :, None, None]).sum(1, keepdim=True)
    raw = F.interpolate(raw, (4, 4), mode="bilinear", align_corners=False)[:, 0]
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    activation = (raw - low) / (high - low)
    ratio, u_specific, _ = draws(run, 16)
    for m in range(6):
        t = m // 3
        expected = fuse_spatial(
            before.features[t : t + 1],
            specific_mask(activation[t : t + 1], 0.8),
            before.extra.features[m : m + 1],
            activation[10 + m : 11 + m],
            ratio[m : m + 1],
            u_specific[m : m + 1],
        )
        torch.testing.assert_close(after.features[10 + m], expected[0])


def test_only_vectors_of_the_pair_and_their_shares_appear():
    run = Run().start()
    before, after, _ = run.fold(3)
    activation, others = activations(before, run.method.cam_weight)
    specific, generic = specific_mask(activation, 0.8).flatten(1), generic_mask(others, 0.2).flatten(1)
    share = torch.round(draws(run, 9)[0] * 9).long()
    for m in range(6):
        slots = after.features[10 + m].flatten(1).T
        own = before.features[m // 3].flatten(1).T[specific[m // 3]]
        other = before.extra.features[m].flatten(1).T[generic[m]]
        for slot, vector in enumerate(slots):
            allowed = own if slot < share[m] else other
            assert (allowed == vector).all(1).any()


def test_a_step_draws_the_same_numbers_in_every_run_and_the_next_step_others():
    run = Run().start()
    first = run.fold(0)[1].features[10:]
    assert torch.equal(Run().start().fold(0)[1].features[10:], first)
    run.drawn.indices[1], run.extra[1] = run.drawn.indices[0], run.extra[0]  # the same images in another step
    assert not torch.equal(run.fold(1)[1].features[10:], first)


def test_rows_that_an_earlier_method_appended_stay():
    run = Run().start()
    batch = run.batch()
    with torch.no_grad():
        maps = run.model.backbone.forward_maps(batch.rows)
    record = shown(Features.of(batch, maps, batch.images))
    before = record.append(maps[:2] + 1, batch.targets[:2], batch.source_index[:2])
    after = run.method.augment_features(features=before, context=run.context)
    assert len(after.targets) == 18
    assert torch.equal(after.features[10:12], maps[:2] + 1)
    assert after.synthetic[10:].all()


def test_one_tail_image_a_batch():
    run = Run().start(batch_size=8)
    before, after, _ = run.fold()
    assert torch.equal(after.targets[[0, 5, 6, 7]], before.targets[:1].expand(4))


def test_bf16_features_stay_bf16():
    run = Run().start()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, after, pooled = run.fold(cast=torch.bfloat16)
    assert after.features.dtype == torch.bfloat16
    assert torch.isfinite(pooled).all()


def test_images_without_any_activation_give_no_nan():
    run = Run().start()
    run.images.zero_()
    nn.init.zeros_(run.model.backbone.layer2[0].bias)
    nn.init.zeros_(run.model.backbone.layer1[0].bias)
    _, after, _ = run.fold()
    assert torch.equal(after.features, torch.zeros_like(after.features))


def test_channels_last_features_stay_channels_last():
    run = Run(tap="layer1").start()
    run.model.to(memory_format=torch.channels_last)
    run.images = run.images.to(memory_format=torch.channels_last)
    before, after, _ = run.fold()
    assert before.features.is_contiguous(memory_format=torch.channels_last)
    assert after.features.is_contiguous(memory_format=torch.channels_last)


# What trains.


def losses(run, pooled, targets):
    return F.cross_entropy(run.model.classifier(pooled), targets)


def test_the_classifier_trains_and_the_frozen_backbone_does_not():
    run = Run().start()
    set_trainable(run.model, {"classifier.weight", "classifier.bias"})
    _, after, pooled = run.fold()
    losses(run, pooled, after.targets).backward()
    assert run.model.classifier.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in run.model.backbone.parameters())


def test_behind_an_inner_tap_the_later_layers_train():
    run = Run(tap="layer1").start()
    set_trainable(run.model, {"backbone.layer2.0.weight", "classifier.weight", "classifier.bias"})
    _, after, pooled = run.fold()
    losses(run, pooled[10:], after.targets[10:]).backward()  # the augmented rows alone
    assert run.model.backbone.layer2[0].weight.grad.abs().sum() > 0
    assert run.model.backbone.layer1[0].weight.grad is None


def test_a_stage_learns_and_leaves_phase_one_alone():
    run = Run(augmented=1).start(batch_size=64)
    kept = {name: tensor.clone() for name, tensor in run.phase_one.state_dict().items()}
    buffers = {name: tensor.clone() for name, tensor in run.method.state_dict().items()}
    set_trainable(run.model, {"classifier.weight", "classifier.bias"})
    parameters = list(run.model.classifier.parameters())
    seen = []
    for _ in range(30):
        _, after, pooled = run.fold()
        loss = losses(run, pooled, after.targets)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= gradient
        seen.append(loss.item())
    assert seen[-1] < seen[0]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in run.phase_one.state_dict().items())
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in run.method.state_dict().items())


# Refusals, and what an inner loop must not do.


def test_another_samplers_batch_is_refused():
    run = Run().start()
    run.drawn = SimpleNamespace(indices=run.drawn.indices, layout=None)
    with pytest.raises(RecipeError, match="has not the layout of OFA's sampler"):
        run.fold()


def test_an_inner_tap_without_images_is_refused():
    run = Run(tap="layer1").start()
    with pytest.raises(RecipeError, match="cache: off"):
        run.fold(images=False)


@pytest.mark.parametrize("tap", ["maps", "layer1"])
def test_the_fold_never_waits_for_the_device(tap, no_sync):
    run = Run(tap=tap).start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # searchsorted warns of copies
        with no_sync():
            run.fold()


@pytest.mark.gpu
@pytest.mark.parametrize("tap", ["maps", "layer1"])
def test_the_fold_on_a_gpu_never_synchronises(tap):
    run = Run(tap=tap, device="cuda").start()
    batch = run.batch()

    def change(x):
        features = shown(Features.of(batch, x, batch.images))
        return run.method.augment_features(features=features, context=run.context).features

    def fold():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return run.model.backbone.run(batch.rows, at={tap: change})

    fold()  # the first call may set libraries up
    torch.cuda.set_sync_debug_mode("error")
    try:
        pooled = fold()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(pooled).all()


# What a report shows.


def test_reported_vectors_are_the_means_of_the_masked_locations():
    run = Run().start()
    (shown_vectors,) = run.method.reported([0, 2, 4], run.context)
    panels = shown_vectors.panels
    assert list(panels) == ["class-specific vectors", "class-generic vectors"]
    (specific, labels), (generic, _) = panels.values()
    assert labels.bincount().tolist() == [4, 0, 3, 0, 8]  # every image of small classes
    maps = run.model.backbone.forward_maps(run.images)
    weight = run.phase_one.classifier.weight
    for label in (0, 2, 4):
        rows = torch.nonzero(run.targets == label)[:, 0]
        activation = class_activation_maps(maps[rows], weight, run.targets[rows])
        for found, chosen in ((specific, activation >= 0.8), (generic, activation <= 0.2)):
            wanted = [maps[row][:, mask].mean(1) for row, mask in zip(rows, chosen, strict=True)]
            distances = torch.cdist(found[labels == label], torch.stack(wanted))
            assert torch.equal(distances.argmin(1).sort().values, torch.arange(len(rows)))
            assert distances.amin(1).max() < 1e-4


def test_nothing_is_reported_where_nothing_is_augmented():
    run = Run(augmented=0).start()
    assert run.method.reported([0, 1], run.context) == []
