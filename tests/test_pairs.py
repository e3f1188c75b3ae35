"""Any two methods in one recipe: they train together, or are refused by name before any data is read."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ltcore import Batch, Context, Features, Method, RecipeError, discovery, hookimpl, hookspecs, static
from ltcore.checks import NEEDS
from ltcore.console import Reporter
from ltcore.hooks import Hooks
from ltcore.recipe.loading import load_recipe
from ltcore.runner import execute
from ltcore.samplers import EpochBatches, PlainSampler, class_balanced


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
        return class_balanced(context.class_counts) if context.epoch else None


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
        return features.append(features.features + noise, features.targets, features.source_index)


class NoiseOnMaps(Noise):
    tap = "maps"


class Margin(Method):
    @hookimpl
    def compute_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.multi_margin_loss(logits, targets, reduction="none")


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
#: Options of installed methods whose defaults do not suit stages as short, or data as small, as this.
OPTIONS: dict[str, dict] = {
    "afg": {"head_images": 10},
    "distillation": {"head_images": 10},
    "safa": {"start_epoch": 1},
}
#: Methods with networks of their own, which a recipe names in `trainable`.
NETWORKS = {"safa", "stg", "t_own_term"}
#: Methods that act on the features of a fixed backbone, and refuse to train it.
ON_FIXED_FEATURES = {"afg", "distillation"}


def hooks_of_all() -> dict[str, set[str]]:
    found = {offer.name: set(static.inspect(offer).hooks) for offer in discovery.offers()}
    found = {name: hooks for name, hooks in found.items() if not hooks & {"build_data", "build_backbone"}}
    marked = {name: {hook for hook in hookspecs.KINDS if hasattr(kind, hook)} for name, kind in MADE.items()}
    return found | marked


HOOKS = hooks_of_all()
FOLDS = {hook for hook, kind in hookspecs.KINDS.items() if kind == "fold"}
PAIRS = [
    (a, b)
    for a in sorted(HOOKS)
    for b in sorted(HOOKS)
    if a <= b or HOOKS[a] & HOOKS[b] & FOLDS  # where records are passed on, the order matters
]


def recipe_of(first: str, second: str | None = None) -> dict:
    """Each method where it can act: in the second stage, at the end, or in both."""
    uses = {first: first}
    if second:
        uses[f"{second}_again" if first == second else second] = second
    acting = [key for key, use in uses.items() if HOOKS[use] - {"post_calibrate", "on_run_start"}]
    trained = ["classifier"] if ON_FIXED_FEATURES & set(uses.values()) else ["backbone", "classifier"]
    common = {"batch_size": 16, "optimizer": {"lr": 0.05}}
    return {
        "data": "{use: synthetic, options: {class_counts: [25, 17, 9, 5], image_size: 8}, holdout: 1}",
        "methods": {key: {"use": use, "options": OPTIONS.get(use, {})} for key, use in uses.items()},
        "stages": [
            {"name": "first", "iterations": 2, **common},
            {
                "name": "second",
                "iterations": 5,
                "methods": acting,
                "trainable": [*trained, *(key for key in acting if uses[key] in NETWORKS)],
                **common,
            },
        ],
        "calibrate": [key for key, use in uses.items() if "post_calibrate" in HOOKS[use]],
    }


def instance(name: str) -> Method:
    kind = MADE.get(name) or discovery.load(discovery.find(name))
    return kind(kind.Options(**OPTIONS.get(name, {})))


@pytest.fixture
def train(offer_methods, write_recipe, tmp_path, monkeypatch):
    """Run a recipe; returns whether data was read, and the result or the refusal."""
    offer_methods(MADE)
    offers = discovery.offers()
    monkeypatch.setattr(discovery, "offers", lambda: offers)  # looked up once, not for each name
    read, build_data = [], Hooks.build_data
    monkeypatch.setattr(Hooks, "build_data", lambda self: read.append(self) or build_data(self))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # quicker for tensors as small as these

    def run(parts):
        loaded = load_recipe(write_recipe(**parts))
        try:
            result, path = execute(loaded, tmp_path / "runs", False, Reporter(io.StringIO()))
        except RecipeError as refusal:
            return bool(read), refusal
        losses = [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert all(math.isfinite(loss) for loss in losses)
        assert all(np.isfinite(values).all() for values in np.load(path / "predictions.npz").values())
        assert 0 <= result["after_calibration"]["top1"] <= 1
        return bool(read), result

    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_each_method_trains_alone(train, name):
    _, outcome = train(recipe_of(name))
    assert isinstance(outcome, dict), outcome


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda name: name)
def test_a_pair_trains_or_is_refused_by_name(train, first, second):
    parts = recipe_of(first, second)
    read, outcome = train(parts)
    if isinstance(outcome, dict):
        both = {hook for hook in HOOKS[first] & HOOKS[second] if hookspecs.KINDS[hook] == "one"}
        assert not both, f"both answer {both}, and the run went through"
        one, other = instance(first), instance(second)
        assert not one.requires & other.breaks and not other.requires & one.breaks
        return
    message = str(outcome)
    assert not read, f"refused only after the data was read: {message}"
    assert all(f"'{key}'" in message for key in parts["methods"]), message
    assert any(word in message for word in (*hookspecs.KINDS, *NEEDS)), message


def test_two_losses_in_one_stage_are_refused(train):
    read, outcome = train(recipe_of("focal", "t_margin"))
    assert not read
    assert "stage 'second': 'focal' and 't_margin' both compute the loss (hook compute_loss); keep one" in str(outcome)


BACKBONES = {
    "cifar_resnet": "{use: cifar_resnet, options: {depth: 8, width: 4}}",
    "timm": "{use: timm, options: {model: test_resnet}}",
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_focal_then_ofa_then_tau_norm(train, backbone):
    parts = recipe_of("focal", "ofa") | {"backbone": BACKBONES[backbone]}
    parts["data"] = parts["data"].replace("image_size: 8", "image_size: 32")
    parts["methods"]["tau_norm"] = {}
    parts["stages"][0]["methods"], parts["stages"][1]["methods"] = ["focal"], ["ofa"]
    parts["stages"][1]["trainable"] = ["classifier"]
    parts["calibrate"] = ["tau_norm"]
    _, result = train(parts)
    assert [stage["name"] for stage in result["stages"]] == ["first", "second"]
    assert result["calibration"] == ["tau_norm"]
