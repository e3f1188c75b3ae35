from dataclasses import replace

import numpy as np
import pytest
import torch
from ltcore_bcl import BCL, BCLOptions, balanced_contrastive_loss, strong_view
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import ltcore
from ltcore import Batch, ForExtraRows, Method, RecipeError, hookimpl
from ltcore.testing import make_context, step_losses, write_short_recipe

CLASSES, ROWS = 4, 6


class Blend(Method):
    @hookimpl
    def mix_inputs(self, batch):
        partner = batch.targets.roll(1)
        share = torch.full_like(batch.targets, 0.6, dtype=torch.float32)
        images = 0.6 * batch.images + 0.4 * batch.images.roll(1, 0)
        return replace(batch, images=images, partner_targets=partner, target_weight=share)


class Made:
    """A model with BCL in it, as far as a step needs it; in eval mode, so that rows do not see each other."""

    def __init__(self, *others, precision=None, **options):
        torch.manual_seed(0)
        options = {"temperature": 0.2, "hidden_dim": 5, "embedding_dim": 7, **options}
        self.method = BCL(BCLOptions(**options))
        self.context = make_context((5,) * CLASSES, owner="bcl")
        self.method.on_run_start(context=self.context)
        self.model = self.context.model.eval()
        self.model.methods["bcl"] = self.method.eval()
        self.methods, self.precision = {"bcl": self.method, **dict(zip("abc", others, strict=False))}, precision

    def losses(self, batch=None):
        return step_losses(batch or self.batch(), self.methods, self.context, precision=self.precision)

    def batch(self):
        index = torch.arange(ROWS)
        (twice,) = self.method.extra_rows(indices=[index], generator=torch.Generator(), context=self.context)
        assert torch.equal(twice, torch.cat([index, index]))
        generator = torch.Generator().manual_seed(3)
        images = torch.randn(3 * ROWS, 3, 8, 8, generator=generator)
        rows = Batch(images[:ROWS], index % CLASSES, index)
        views = Batch(images[ROWS:], twice % CLASSES, twice)
        return replace(rows, extras={"bcl": views})

    def expected(self):
        """The contrastive loss of the batch's views, without its weight."""
        views = self.batch().extras["bcl"]
        embeddings = normalize(self.method.of_features(self.model.backbone(views.images)), dim=1)
        prototypes = normalize(self.method.of_classes(self.model.classifier.weight), dim=1)
        return balanced_contrastive_loss(embeddings, views.targets, prototypes, self.method.options.temperature)


def test_defaults_are_the_authors_and_bounds():
    assert BCL().options.model_dump() == {
        "temperature": 0.07,
        "weight": 0.35,
        "classification_weight": 1.0,
        "hidden_dim": None,
        "embedding_dim": 1024,
        "views": "strong",
        "smallest_crop": 0.08,
        "blur": 0.0,
    }
    for wrong in [
        {"temperature": 0},
        {"weight": -1},
        {"classification_weight": -1},
        {"hidden_dim": 0},
        {"blur": 2},
        {"tau": 1},
    ]:
        with pytest.raises(ValidationError):
            BCLOptions(**wrong)
    assert all(field.description for field in BCLOptions.model_fields.values())


def test_both_networks_have_the_authors_shape():
    made = Made(hidden_dim=None, embedding_dim=9)
    for network in (made.method.of_features, made.method.of_classes):
        assert [type(part) for part in network] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert network(torch.randn(2, 8)).shape == (2, 9) and network[0].out_features == 8
    assert not torch.equal(made.method.of_features[0].weight, made.method.of_classes[0].weight)


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_the_terms_of_a_step(weight):
    made = Made(weight=0.6, classification_weight=weight)
    terms = made.losses()
    batch = made.batch()
    plain = cross_entropy(made.model(batch.images), batch.targets)
    assert set(terms) == {"classification", "bcl/contrastive"}
    torch.testing.assert_close(terms["classification"], weight * plain)
    torch.testing.assert_close(terms["bcl/contrastive"], 0.6 * made.expected())


def test_only_the_views_are_contrasted_and_only_the_batch_is_classified():
    made, batch = Made(), Made().batch()
    before = made.losses(batch)
    other = made.losses(replace(batch, images=batch.images + 1))
    assert other["bcl/contrastive"] == before["bcl/contrastive"]
    assert other["classification"] != before["classification"]
    views = replace(batch.extras["bcl"], images=batch.extras["bcl"].images + 1)
    other = made.losses(replace(batch, extras={"bcl": views}))
    assert other["bcl/contrastive"] != before["bcl/contrastive"]
    assert other["classification"] == before["classification"]


def test_a_mixed_batch_leaves_the_views_and_their_labels_alone():
    plain, mixed = Made(), Made(Blend())
    terms = mixed.losses()
    torch.testing.assert_close(terms["bcl/contrastive"], plain.losses()["bcl/contrastive"])
    assert terms["classification"] != plain.losses()["classification"]


def test_gradients_reach_backbone_networks_and_the_classifiers_weights():
    made = Made()
    made.losses()["bcl/contrastive"].backward()
    for name, parameter in made.model.named_parameters():
        reached = parameter.grad is not None and bool((parameter.grad != 0).any())
        assert reached == (name != "classifier.bias"), name


def test_views_share_the_batchs_statistics():
    """As in the authors' code, batch norm sees the batch and its views as one."""
    made = Made()
    made.model.train()
    seen = []
    made.model.backbone.layer1[1].register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    made.losses()
    assert seen == [3 * ROWS]


def test_under_bf16_the_loss_of_the_embeddings_is_in_float32():
    made = Made(precision=torch.bfloat16, temperature=0.07, weight=1.0)
    found = made.losses()["bcl/contrastive"]
    assert found.dtype == torch.float32
    batch = made.batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = made.model.backbone(batch.rows)[ROWS:]
        rows = made.method.of_features(pooled), made.method.of_classes(made.model.classifier.weight)
    unit = [normalize(each.float(), dim=1) for each in rows]
    expected = balanced_contrastive_loss(unit[0], batch.extras["bcl"].targets, unit[1], 0.07)
    torch.testing.assert_close(found, expected)


def test_views_are_changed_strongly_unless_they_have_the_datas_own():
    answer = BCL(BCLOptions(smallest_crop=0.2, blur=0.5)).image_transform(context=None)
    assert isinstance(answer, ForExtraRows) and answer.function.func is strong_view
    assert answer.function.keywords == {"smallest": 0.2, "blur": 0.5}
    assert BCL(BCLOptions(views="data")).image_transform(context=None) is None


# -- in a run ----------------------------------------------------------------------------------------------------------


def recipe(tmp_path, methods, name="r", views="strong", **stage):
    data = {"class_counts": [48, 24, 12, 4], "image_size": 8, "test_per_class": 4}
    return write_short_recipe(
        tmp_path / f"{name}.yaml",
        data={"use": "synthetic", "options": data, "transform": {"crop_padding": 1}},
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods={key: {"options": {"views": views}} if key == "bcl" else {} for key in methods},
        stages=[{"epochs": 3, "trainable": ["backbone", "classifier", "bcl"], **stage}],
        checkpoint_seconds=0,
    )


def run(file, out, resume=False):
    done = ltcore.run(file, out=out, resume=resume)
    return done.logits, done.path


@pytest.mark.parametrize(
    "methods",
    [
        ["ldam", "bcl", "mixup"],
        *(pytest.param(each, marks=pytest.mark.slow) for each in (["bcl"], ["balanced_softmax", "bcl"])),
    ],
)
def test_a_killed_run_goes_on_exactly(tmp_path, copy_at_checkpoint, methods):
    file = recipe(tmp_path, methods)
    copy_at_checkpoint(9, tmp_path / "killed" / "runs" / "r")
    whole, path = run(file, tmp_path / "runs")
    copy_at_checkpoint()
    resumed, other = run(file, tmp_path / "killed" / "runs", resume=True)
    assert path != other and np.array_equal(whole, resumed)


def test_the_contrastive_loss_falls(tmp_path, look_on):
    seen = []
    look_on(losses_computed=lambda run, loop, losses: seen.append(losses["bcl/contrastive"].item()))
    run(recipe(tmp_path, ["bcl"], epochs=8), tmp_path)
    assert np.mean(seen[-6:]) < 0.9 * np.mean(seen[:6])


def images_seen(tmp_path, look_on, name, **options):
    """The batches of a run, and the views that it has seen."""
    seen = []

    def watch(run, loop):
        forward = loop.forward

        def watched(batch, weights):
            views = batch.extras["bcl"]
            assert torch.equal(views.targets, batch.targets.repeat(2))
            assert torch.equal(views.source_index, batch.source_index.repeat(2))
            seen.append((batch.images.clone(), views.images.clone()))
            return forward(batch, weights)

        loop.forward = watched

    look_on(stage_started=watch)
    run(recipe(tmp_path, ["bcl"], name, epochs=1, **options), tmp_path)
    return torch.cat([images for images, _ in seen]), seen


@pytest.mark.parametrize("views", ["data", "strong"])
def test_views_of_an_image_have_random_changes_of_their_own(tmp_path, look_on, views):
    _, seen = images_seen(tmp_path, look_on, "r", views=views)
    differing = [
        (one != other).flatten(1).any(1).float().mean().item()
        for images, both in seen
        for first, second in [both.split(len(images))]
        for one, other in ((first, second), (images, first), (images, second))
    ]
    assert np.mean(differing) > 0.8  # of 3 x 3 crops, one in nine is the same


def test_strong_changes_leave_the_batch_alone(tmp_path, look_on):
    plain, seen_plainly = images_seen(tmp_path, look_on, "plain", views="data")
    strong, seen_strongly = images_seen(tmp_path, look_on, "strong")
    assert torch.equal(plain, strong)
    for (_, first), (_, second) in zip(seen_plainly, seen_strongly, strict=True):
        assert (first != second).flatten(1).any(1).float().mean() > 0.9


def test_a_stage_that_does_not_train_its_networks_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"needs own_parameters_train .*write trainable: .*bcl"):
        run(recipe(tmp_path, ["bcl"], trainable=["backbone", "classifier"]), tmp_path)
