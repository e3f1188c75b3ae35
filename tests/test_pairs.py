"""Any two methods in one recipe: they train together, or are refused by name before any data is read."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import ltcore
from ltcore import Batch, Context, Features, Method, RecipeError, hookimpl
from ltcore.contract import hookspecs
from ltcore.contract.samplers import EpochBatches, PlainSampler, class_balanced_distribution
from ltcore.discovery import catalogue, static
from ltcore.testing.pairs import FOLDS, fitted, together
from ltcore.testing.parts import PARTS
from ltcore.testing.recipes import compose, part_of, plan_of, with_companions
from ltcore.testing.trial import CALIBRATED, train
from ltcore.testing.watch import Watch


class Mixup(Method):
    breaks = frozenset({"hard_labels"})

    @hookimpl
    def mix_inputs(self, batch: Batch, context: Context) -> Batch:
        order = torch.randperm(len(batch.targets), generator=context.generator, device=context.device)
        share = torch.full_like(batch.targets, 0.7, dtype=torch.float32)
        images = 0.7 * batch.images + 0.3 * batch.images[order]
        return replace(batch, images=images, partner_targets=batch.targets[order], target_weight=share)


class Reweighting(Method):
    @hookimpl
    def class_weights(self, context: Context) -> torch.Tensor:
        return 1 / context.class_counts


class DeferredSampling(Method):
    @hookimpl
    def class_distribution(self, context: Context) -> torch.Tensor | None:
        return class_balanced_distribution(context.class_counts) if context.epoch else None


class OwnTerm(Method):
    auxiliary = ("error",)

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        (width,) = context.feature_shape("pooled")
        self.guess = nn.Linear(width, width)

    @hookimpl
    def auxiliary_losses(self, features: Features) -> dict[str, torch.Tensor]:
        return {"error": (self.guess(features.features) - features.features).square().mean()}


class Cosine(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.direction, self.bias = nn.Parameter(torch.randn(classes, width)), None

    @property
    def weight(self) -> torch.Tensor:
        return nn.functional.normalize(self.direction)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * nn.functional.normalize(x) @ self.weight.T


class CosineClassifier(Method):
    @hookimpl
    def build_classifier(self, feature_dim: int, num_classes: int) -> nn.Module:
        return Cosine(feature_dim, num_classes)


class Noise(Method):
    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        noise = torch.randn(features.features.shape, generator=context.generator, device=context.device)
        return features.append(features.features + noise, features.targets, features.source_index, features.expert)


class NoiseOnMaps(Noise):
    tap = "maps"


class Margin(Method):
    @hookimpl
    def compute_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        margins = (1 - logits.gather(1, targets[:, None]) + logits).clamp(min=0)  # differentiable more than once
        return (margins.sum(1) - 1) / logits.shape[1]


class Twins(PlainSampler):
    def draw(self, *arguments) -> EpochBatches:
        return EpochBatches([torch.cat([half, half]) for half in super().draw(*arguments).indices])


class TwinSampler(Method):
    @hookimpl
    def build_sampler(self, batch_size: int, context: Context) -> Twins:
        return Twins(context.training_targets, context.num_classes, batch_size // 2)


MADE = {
    "t_cosine": CosineClassifier,
    "t_deferred": DeferredSampling,
    "t_margin": Margin,
    "t_mixup": Mixup,
    "t_noise": Noise,
    "t_noise_maps": NoiseOnMaps,
    "t_own_term": OwnTerm,
    "t_reweighting": Reweighting,
    "t_twins": TwinSampler,
}


def hooks_of_all() -> dict[str, set[str]]:
    found = {offer.name: set(static.inspect(offer).hooks) for offer in catalogue.offers()}
    found = {name: hooks for name, hooks in found.items() if not hooks & {"build_data", "build_backbone"}}
    marked = {name: {hook for hook in hookspecs.HOOKS if hasattr(kind, hook)} for name, kind in MADE.items()}
    return found | marked


HOOKS = hooks_of_all()
PAIRS = [
    (a, b)
    for a in sorted(HOOKS)
    for b in sorted(HOOKS)
    if a <= b or HOOKS[a] & HOOKS[b] & FOLDS  # where records are passed on, the order matters
]


@pytest.fixture(scope="module", autouse=True)
def part():
    """``part("focal")``: a method as `ltcore check` puts it beside others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # quicker for tensors as small as these
    with catalogue.lent({**PARTS, **MADE}):
        yield cache(lambda name: fitted(part_of(catalogue.find(name))))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_each_method_trains_alone(part, name):
    trained = train(compose(with_companions(part(name))), Watch())
    assert trained.losses and trained.tensors[CALIBRATED].isfinite().all()


@pytest.mark.sampled(32)
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda name: name)
def test_a_pair_trains_or_is_refused_by_name(part, first, second):
    _, problem = together(part(first), part(second))
    assert problem is None


def test_two_losses_in_one_stage_are_refused(part):
    with pytest.raises(RecipeError) as refusal:
        plan_of(compose([part("focal"), part("t_margin")]))
    assert "'t_margin' both compute the loss (hook compute_loss); keep one" in str(refusal.value)
    assert together(part("focal"), part("t_margin")) == ("refused", None)


@pytest.mark.parametrize(("name", "options", "size"), [("cifar_resnet", {}, 8), ("timm", {"model": "test_resnet"}, 16)])
def test_a_backbone_is_checked_on_the_smallest_images_that_leave_it_maps(name, options, size):
    with catalogue.lent(PARTS):
        backbone = fitted(part_of(catalogue.find(name), options))
        assert compose([backbone])["data"]["options"] == {"image_size": size}
        assert plan_of(compose([backbone])).loaded.recipe.backbone.use == name


def test_what_is_wrong_with_a_pair_is_said(part):
    class Quarrelsome(Method):
        @hookimpl
        def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
            return logits

        def check_stage(self, stage) -> None:
            if len(stage.methods) > 1:
                raise RecipeError("not in such company")

    with catalogue.lent({"t_quarrelsome": Quarrelsome}):
        outcome, problem = together(part("focal"), part("t_quarrelsome"))
    assert outcome == "refused" and problem.startswith("the refusal does not name 'focal': stage 'second': ")


BACKBONES = {
    "cifar_resnet": "{use: cifar_resnet, options: {depth: 8, width: 4}}",
    "timm": "{use: timm, options: {model: test_resnet}}",
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_focal_then_ofa_then_tau_norm(write_recipe, tmp_path, backbone):
    common = {"batch_size": 16, "optimizer": {"lr": 0.05}}
    path = write_recipe(
        data="{use: synthetic, options: {class_counts: [25, 17, 9, 5], image_size: 32}}",
        backbone=BACKBONES[backbone],
        methods="{focal: {}, ofa: {}, tau_norm: {}}",
        stages=[
            {"name": "first", "iterations": 2, "methods": ["focal"], **common},
            {"name": "second", "iterations": 5, "methods": ["ofa"], "trainable": ["classifier"], **common},
        ],
        calibrate="[tau_norm]",
    )
    done = ltcore.run(path, out=tmp_path / "runs")
    result = done.result
    with np.load(done.path / "predictions.npz") as arrays:
        assert all(np.isfinite(values).all() for values in arrays.values())
    assert [stage["name"] for stage in result["stages"]] == ["first", "second"]
    assert result["calibration"] == ["tau_norm"]
