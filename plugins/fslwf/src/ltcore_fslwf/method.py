"""The method `fslwf`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from ltcore_cosine_classifier import CosineClassifier, unit_rows
from pydantic import Field
from torch import Tensor, nn

from ltcore import (
    Backbone,
    Context,
    DataError,
    EpochBatches,
    Features,
    Method,
    Options,
    PlainSampler,
    RecipeError,
    Stage,
    hookimpl,
)
from ltcore_fslwf.functional import attended_weights, class_means, draw_exemplars, exemplar_parts, generated_logits

#: Images whose attention is held at once when a stage ends.
_AT_ONCE = 4096


class FSLwFOptions(Options):
    """Options of FSLwF; where no other reason is given, defaults are those of the published code on ImageNet."""

    base_images: int = Field(default=21, ge=2)
    """Base classes have at least so many training images, novel ones fewer. Ours: the code has no long tails."""
    generator: Literal["attention", "average"] = "attention"
    """What a class's weight is made of: mean features and what attention finds among base weights, or the former."""
    novel_share: float = Field(default=0.64, gt=0.0, lt=1.0)
    """The share of the base classes that are taken for novel in a step."""
    exemplars: int = Field(default=10, ge=1)
    """How many images of each of these its weight is generated from. The code has 1, 2, 5, 10 and 20."""
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """The share of pooled features, of exemplars and others, that are 0 in a step."""
    attention_scale: float = Field(default=30.0, gt=0.0)
    """Where the learned factor of the attention's cosines begins."""


class BaseSampler(PlainSampler):
    """Plain batches of base classes alone, each class equally often, or as the stage's distribution says of them.

    Args:
        targets: [N] int64, on the CPU.
        base: [C] bool, on the CPU.
        batch_size: B. An epoch has as many rows as the training split has images.
    """

    def __init__(self, targets: Tensor, base: Tensor, batch_size: int) -> None:
        super().__init__(targets, len(base), batch_size)
        self._shares = base.double() / base.sum()

    def draw(self, steps: int, distribution: Tensor | None, generator: torch.Generator) -> EpochBatches:
        """See `ltcore.Sampler.draw`.

        Raises:
            RecipeError: the distribution draws no base class.
        """
        shares = self._shares if distribution is None else self._shares * distribution.cpu()
        if not bool(shares.any()):
            raise RecipeError("no base class is drawn by what says how often each class is; drop one")
        return super().draw(steps, shares, generator)


class FSLwF(Method[FSLwFOptions]):
    """Few-shot learning without forgetting (Gidaris and Komodakis 2018), the stage in which its generator learns.

    Some base classes are taken for novel in each step, and their weights generated from a few of their images. When the
    stage ends, the classifier gets the weights of the truly novel classes, from all of their images.

    Attributes:
        base: [C] bool.
    """

    interface = "1.1"
    checked_with: ClassVar = {"base_images": 10, "exemplars": 2, "novel_share": 0.34}
    requires = frozenset(
        {"cosine_classifier", "earlier_stage", "fixed_backbone", "hard_labels", "one_network", "own_parameters_train"}
    )
    base: Tensor

    def __init__(self, options: FSLwFOptions | None = None) -> None:
        """Keep the options."""
        super().__init__(options)
        # Of the epoch, and found again in `extra_rows` by a run that goes on.
        self._episodes: list[Tensor] = []

    def check_stage(self, stage: Stage) -> None:
        """Refuse validations within the stage."""
        if stage.validate_every:
            raise RecipeError(
                "the classifier gets the novel classes' weights when the stage ends, and no sooner; leave "
                "validate_every out"
            )

    @hookimpl
    def adapt_backbone(self, backbone: Backbone) -> Backbone:
        """The network without its last ReLU, so that features, and with them cosines, have either sign.

        Raises:
            RecipeError: it has no ReLU that is a module.
        """
        found = [name for name, module in backbone.named_modules() if type(module) is nn.ReLU]
        if not found:
            raise RecipeError(
                "takes the last ReLU out of a network, and this one has none that is a module; choose a ResNet of timm "
                "(backbone.use: timm), or take it out of backbone.adapt"
            )
        parent, _, name = found[-1].rpartition(".")
        setattr(backbone.get_submodule(parent), name, nn.Identity())
        return backbone

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make the generator.

        Raises:
            DataError: there is no novel class, or there are fewer than two base classes.
        """
        (width,), options, counts = context.feature_shape("pooled"), self.options, context.class_counts
        base = counts >= options.base_images
        number = int(base.sum())
        if number < 2 or number == len(counts):
            raise DataError(
                f"{number} of {len(counts)} classes have at least base_images {options.base_images} training images "
                f"(they have from {int(counts.min())} to {int(counts.max())}); two base classes are needed, and a "
                "novel one"
            )
        self.register_buffer("base", base)
        self.average_gain = nn.Parameter(torch.ones(width))
        if options.generator == "attention":
            self.attention_gain = nn.Parameter(torch.ones(width))
            self.query = nn.Linear(width, width)
            with torch.no_grad():
                self.query.weight.copy_(torch.eye(width) + 0.001 * torch.randn(width, width))
                self.query.bias.zero_()
            self.keys = nn.Parameter(math.sqrt(2 / width) * torch.randn(len(counts), width))
            self.scale = nn.Parameter(torch.tensor(options.attention_scale))

    @hookimpl
    def build_sampler(self, batch_size: int, context: Context) -> BaseSampler:
        """Batches of base classes; an episode has no others."""
        return BaseSampler(context.training_targets, self.base.cpu(), batch_size)

    @hookimpl
    def extra_rows(self, indices: list[Tensor], generator: torch.Generator, context: Context) -> list[Tensor]:
        """For each batch, exemplars of the base classes that are taken for novel, class by class."""
        classes = self.base.cpu().nonzero()[:, 0]
        number = min(max(1, round(self.options.novel_share * len(classes))), len(classes) - 1)
        self._episodes, drawn = [], []
        for batch in indices:
            novel = classes[torch.randperm(len(classes), generator=generator)[:number]]
            self._episodes.append(novel)
            rows = draw_exemplars(context.training_targets, batch, novel, self.options.exemplars, generator)
            drawn.append(rows)
        return drawn

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        """Dropout on the batch's rows and the exemplars, [N, D]."""
        extra, share = features.extra, self.options.dropout
        assert extra is not None  # asked for in every epoch
        if not share:
            return features

        def dropped(record: Features) -> Features:
            x = record.features
            kept = torch.rand(x.shape, generator=context.generator, device=x.device) >= share
            return replace(record, features=torch.where(record.synthetic[:, None], x, kept * x / (1 - share)))

        return replace(dropped(features), extra=dropped(extra))

    def _parts(self, features: Tensor, directions: Tensor, base: Tensor) -> Tensor:
        """What exemplars [M, D] add to the weights of their classes, [M, D], outside of autocast."""
        unit = unit_rows(features)
        if self.options.generator == "average":
            return exemplar_parts(unit, None, self.average_gain, self.average_gain)
        attended = attended_weights(self.query(unit), self.keys, directions, base, self.scale)
        return exemplar_parts(unit, attended, self.average_gain, self.attention_gain)

    @hookimpl
    def adjust_logits(self, logits: Tensor, features: Features, context: Context) -> Tensor:
        """The episode's logits, [N, C]: those of classes taken for novel come from their exemplars."""
        classifier, extra = _cosine(context), features.extra
        assert extra is not None
        novel = self._episodes[context.step].to(logits.device, non_blocking=True)
        seen = self.base.index_fill(0, novel, False)
        with torch.autocast(logits.device.type, enabled=False):
            parts = self._parts(extra.features, classifier.directions, seen)
            weights = parts.view(len(novel), self.options.exemplars, -1).mean(1)
            rows = features.features.to(weights.dtype)
            return generated_logits(logits, rows, weights, novel, self.base, classifier.scale)

    @hookimpl
    def on_stage_end(self, context: Context) -> None:
        """Give the classifier the weights of the novel classes, from all of their training images."""
        directions, features = _cosine(context).directions, context.training_features()
        targets, novel = context.training_targets.to(features.device), ~self.base
        if not directions.requires_grad:
            raise RecipeError("writes the weights of rare classes into the classifier; name classifier under trainable")
        rows = torch.split(novel[targets].nonzero()[:, 0], _AT_ONCE)
        parts = torch.cat([self._parts(features[some].float(), directions, self.base) for some in rows])
        means = class_means(parts, targets[torch.cat(rows)], len(directions))
        directions.copy_(torch.where(novel[:, None], means.to(directions.dtype), directions))

    def logged(self) -> Mapping[str, Tensor]:
        """The attention's factor."""
        return {"attention scale": self.scale} if self.options.generator == "attention" else {}


def _cosine(context: Context) -> CosineClassifier:
    """The stage's classifier.

    Raises:
        RecipeError: it is another one.
    """
    classifier = context.model.classifier
    if not isinstance(classifier, CosineClassifier):
        raise RecipeError("works on the classifier of cosine_classifier, and the stage has another; list it there too")
    return classifier
