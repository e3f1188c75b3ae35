"""The examples of docs/hooks.md, hook by hook; `docs/make_hooks.py` puts them into the page, and a test runs each."""

# -- imports

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltcore import (
    ArraySplit,
    Backbone,
    Batch,
    CalibratedClassifier,
    Context,
    DataSplits,
    EpochBatches,
    Features,
    Method,
    Objective,
    hookimpl,
)

# -- build_data


class Greys(Method):
    @hookimpl
    def build_data(self) -> DataSplits:
        targets = torch.arange(60) % 3
        images = (80 * targets)[:, None, None, None].expand(60, 1, 8, 8).to(torch.uint8)
        split = ArraySplit(images, targets)
        return DataSplits(train=split, test=split, class_names=("dark", "grey", "light"), mean=(0.3,), std=(0.3,))


# -- build_backbone


class TinyBackbone(Backbone):
    inner_taps = ("stem",)
    feature_dim = 16

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)

    def forward_maps(self, images: Tensor) -> Tensor:
        return self.stem(images).relu()


class Tiny(Method):
    @hookimpl
    def build_backbone(self, in_channels: int) -> Backbone:
        return TinyBackbone(in_channels)


# -- adapt_backbone


class SideConv2d(nn.Conv2d):
    """A 3 x 3 convolution with one of 1 x 1 beside it, which begins at zero."""

    def __init__(self, plain: nn.Conv2d) -> None:
        sizes = plain.in_channels, plain.out_channels
        super().__init__(*sizes, 3, plain.stride, padding=1, bias=plain.bias is not None)
        self.weight, self.bias = plain.weight, plain.bias
        self.side = nn.Conv2d(*sizes, 1, bias=False)
        nn.init.zeros_(self.side.weight)

    def forward(self, input: Tensor) -> Tensor:
        down, across = self.stride
        return super().forward(input) + self.side(input[:, :, ::down, ::across])


class Sides(Method):
    @hookimpl
    def adapt_backbone(self, backbone: Backbone) -> Backbone:
        for module in list(backbone.modules()):
            for name, layer in list(module.named_children()):
                if type(layer) is nn.Conv2d and layer.kernel_size == (3, 3):
                    setattr(module, name, SideConv2d(layer))
        return backbone


# -- on_run_start


class Prior(Method):
    @hookimpl
    def on_run_start(self, context: Context) -> None:
        self.register_buffer("log_prior", (context.class_counts / context.class_counts.sum()).log())

    @hookimpl
    def adjust_logits(self, logits: Tensor) -> Tensor:
        return logits + self.log_prior


# -- build_classifier


class NoBias(Method):
    @hookimpl
    def build_classifier(self, feature_dim: int, num_classes: int) -> nn.Module:
        return nn.Linear(feature_dim, num_classes, bias=False)


# -- build_ensemble


class Largest(nn.Module):
    def forward(self, pooled: Tensor, logits: Tensor) -> Tensor:
        return logits.amax(1)  # [N, E, C] to [N, C]


class LargestLogit(Method):
    requires = frozenset({"experts"})

    @hookimpl
    def build_ensemble(self) -> nn.Module:
        return Largest()


# -- on_stage_start


class ClassMeans(Method):
    @hookimpl
    def on_run_start(self, context: Context) -> None:
        self.register_buffer("means", torch.zeros(context.num_classes, *context.feature_shape("pooled")))

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        self.means.copy_(context.class_means())


# -- build_sampler


class Pairs:
    def __init__(self, targets: Tensor, batch_size: int) -> None:
        self.order, self.size = torch.argsort(targets, stable=True), batch_size

    def steps_per_epoch(self) -> int:
        return len(self.order) // self.size

    def draw(self, steps: int, distribution: Tensor | None, generator: torch.Generator) -> EpochBatches:
        first = torch.randint(len(self.order) - 1, (steps, self.size // 2), generator=generator)
        return EpochBatches(list(self.order[torch.cat([first, first + 1], 1)]))


class Neighbours(Method):
    provides = frozenset({"paired_batches"})

    @hookimpl
    def build_sampler(self, batch_size: int, context: Context) -> Pairs:
        return Pairs(context.training_targets, batch_size)


# -- on_epoch_start


class LateStart(Method):
    @hookimpl
    def on_run_start(self) -> None:
        self.register_buffer("strength", torch.zeros(()))

    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        self.strength.fill_(float(context.epoch >= 10))


# -- class_weights


class InverseFrequency(Method):
    @hookimpl
    def class_weights(self, context: Context) -> Tensor:
        return 1 / context.class_counts.float()


# -- class_distribution


class Deferred(Method):
    @hookimpl
    def class_distribution(self, context: Context) -> Tensor | None:
        if context.epoch < 10:
            return None
        return torch.full((context.num_classes,), 1 / context.num_classes)


# -- extra_rows


class SecondView(Method):
    """Each image once more, in another random crop; their features should agree."""

    auxiliary = ("agreement",)

    @hookimpl
    def extra_rows(self, indices: list[Tensor]) -> list[Tensor]:
        return indices

    @hookimpl
    def auxiliary_losses(self, features: Features) -> dict[str, Tensor]:
        seen, again = features.features[~features.synthetic], features.extra.features
        return {"agreement": 1 - F.cosine_similarity(seen, again).mean()}


# -- compute_gradients


class Sharpness(Method):
    """The gradient at the nearby weights where the loss is highest (SAM)."""

    @hookimpl
    def compute_gradients(self, objective: Objective) -> dict[str, Tensor]:
        here = objective.gradients(objective())
        scale = 0.05 / torch.stack([gradient.norm() for gradient in here.values()]).norm()
        there = {name: objective.parameters[name] + scale * gradient for name, gradient in here.items()}
        return objective.gradients(objective(at=there), at=there)


# -- image_transform


def brighten(image: Tensor, target: int, generator: torch.Generator, strengths: list[float]) -> Tensor:
    share = strengths[target] * torch.rand((), generator=generator)
    return (image + share * (255 - image)).round().to(torch.uint8)


class BrighterTails(Method):
    interface = "1.1"

    @hookimpl
    def image_transform(self, context: Context) -> partial[Tensor]:
        counts = context.class_counts.float()
        return partial(brighten, strengths=(0.5 * counts.min() / counts).tolist())


# -- mix_inputs


class Mixup(Method):
    breaks = frozenset({"hard_labels"})

    @hookimpl
    def mix_inputs(self, batch: Batch, context: Context) -> Batch:
        rows, device = len(batch.targets), context.device
        share = torch.rand((), generator=context.generator, device=device)
        other = torch.randperm(rows, generator=context.generator, device=device)
        images = share * batch.images + (1 - share) * batch.images[other]
        return replace(batch, images=images, partner_targets=batch.targets[other], target_weight=share.expand(rows))


# -- augment_features


class Jitter(Method):
    requires = frozenset({"hard_labels"})

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        x = features.features
        noise = torch.randn(x.shape, generator=context.generator, device=x.device, dtype=x.dtype)
        return features.append(x + 0.1 * noise, features.targets, features.source_index)


# -- adjust_logits


class Temperatures(Method):
    @hookimpl
    def on_run_start(self, context: Context) -> None:
        counts = context.class_counts.float()
        self.register_buffer("temperature", (counts.max() / counts) ** 0.3)

    @hookimpl
    def adjust_logits(self, logits: Tensor) -> Tensor:
        return logits / self.temperature


# -- compute_loss


class LabelSmoothing(Method):
    @hookimpl
    def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.1)


# -- sample_weights


class Confident(Method):
    """Rows that are learned already count for less."""

    @hookimpl
    def sample_weights(self, values: Tensor) -> Tensor:
        return 1 - (-values.detach()).exp()


# -- auxiliary_losses


class SmallFeatures(Method):
    auxiliary = ("norm",)

    @hookimpl
    def auxiliary_losses(self, features: Features) -> dict[str, Tensor]:
        return {"norm": features.features.float().square().mean()}


# -- after_step


class ShortRows(Method):
    @hookimpl
    def after_step(self, context: Context) -> None:
        weight = context.model.classifier.weight
        if weight.requires_grad:
            weight.div_(weight.norm(dim=1, keepdim=True).clamp(min=1.0))


# -- on_epoch_end


class Confidence(Method):
    requires = frozenset({"validation"})

    @hookimpl
    def on_run_start(self) -> None:
        self.register_buffer("accuracy", torch.zeros(()))

    @hookimpl
    @torch.no_grad()
    def on_epoch_end(self, context: Context) -> None:
        guesses = context.model.classifier(context.validation_features()).argmax(1)
        self.accuracy.copy_((guesses == context.validation_targets.to(guesses.device)).float().mean())


# -- on_stage_end


class CentredBias(Method):
    @hookimpl
    def on_stage_end(self, context: Context) -> None:
        bias = context.model.classifier.bias
        if bias is not None and bias.requires_grad:
            bias.sub_(bias.mean())


# -- post_calibrate


class Temperature(Method):
    @hookimpl
    def post_calibrate(self, classifier: nn.Module) -> nn.Module:
        return CalibratedClassifier(classifier, scale=0.5)
