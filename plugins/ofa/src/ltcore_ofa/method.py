"""OFA as a method: what is learned from phase one, the batch's layout, the confusing images, and the fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ltcore import (
    ClassPools,
    Context,
    DataError,
    ExpertClassifiers,
    Features,
    Method,
    Options,
    RecipeError,
    ReportScatter,
    Stage,
    hookimpl,
)
from ltcore_ofa.functional import (
    class_activation_maps,
    fuse_pooled,
    fuse_spatial,
    generic_mask,
    head_classes,
    masked_mean,
    most_confusing,
    specific_mask,
)
from ltcore_ofa.sampler import Blocks, OFASampler, tail_rows

#: Scores that are held at once while the confusing classes are counted.
_SCORES_AT_ONCE = 2**24
#: Images of each class whose vectors are shown in a report, and how many go through the network at once.
_SHOWN_IMAGES, _SHOWN_AT_ONCE = 60, 64


class OFAOptions(Options):
    """Options of OFA; the defaults are the paper's for CIFAR, and the usual thresholds where it gives none."""

    tap: str = "maps"
    """Where features are fused: `maps` (before the global pool, the paper's choice) or one of the backbone's inner
    taps (`layer2`, ...), behind which everything should then train."""
    head_ratio: float = Field(default=0.9, gt=0, lt=1)
    """h_r: the head classes are the fewest of the largest that hold at least this share of the training images."""
    specific_threshold: float = Field(default=0.8, gt=0, lt=1)
    """tau_s: locations with at least this activation are class-specific."""
    generic_threshold: float = Field(default=0.2, gt=0, lt=1)
    """tau_g: locations with at most this activation are class-generic."""
    confusing: int = Field(default=3, ge=1)
    """N_f: how many confusing classes a tail class has."""
    augmented: int = Field(default=3, ge=0)
    """N_a: augmented samples for each tail image, the confusing classes taken in turn; 0 for none, the paper's
    comparison "No Aug": batches that are half tail and half head images, and nothing is made."""

    @field_validator("tap")
    @classmethod
    def _spatial(cls, tap: str) -> str:
        if tap == "pooled":
            raise ValueError("OFA mixes locations, and 'pooled' has none; use 'maps' or one of the backbone's taps")
        return tap

    @model_validator(mode="after")
    def _ordered(self) -> OFAOptions:
        if self.generic_threshold > self.specific_threshold:
            raise ValueError(
                f"generic_threshold {self.generic_threshold} is above specific_threshold {self.specific_threshold}: "
                "a location would be both"
            )
        return self


class OFA(Method[OFAOptions]):
    """Online feature augmentation: tail samples fused from tail images and images of their confusing classes.

    For the stage after the one that trained the features. Buffers: `confusing_classes` [C, k] and `cam_weight` [C, D],
    both learned from phase one when the stage starts. In a network with experts each of them has its own activation
    maps and fuses its own features, of the same images; `cam_weight` is [E, C, D].
    """

    interface = "1.1"
    requires = frozenset({"spatial_features", "hard_labels", "earlier_stage"})
    confusing_classes: Tensor
    cam_weight: Tensor

    @property
    def tap(self) -> str:
        """Where `augment_features` acts."""
        tap = self.options.tap
        return tap

    def check_stage(self, stage: Stage) -> None:
        """Refuse a batch size that does not hold OFA's blocks."""
        tail_rows(stage.batch_size, self.options.augmented)

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make the buffers, and check that the options fit the class counts.

        Raises:
            DataError: there is no tail.
            RecipeError: there are not enough other classes to be confused with.
        """
        classes, counts = context.num_classes, context.class_counts.cpu()
        options = self.options
        tail = ~head_classes(counts, options.head_ratio) & (counts > 0)
        if not bool(tail.any()):
            raise DataError(
                f"with head_ratio {options.head_ratio} all {classes} classes are head and nothing is left to augment; "
                "lower head_ratio, or use data with a longer tail"
            )
        others = int((counts > 0).sum()) - 1
        if options.augmented and options.confusing > others:
            raise RecipeError(
                f"option confusing is {options.confusing}, but a class has only {others} other classes with training "
                f"images; use at most {others}"
            )
        (dim,) = context.feature_shape("pooled")
        confusing = torch.zeros(classes, options.confusing, dtype=torch.int64, device=context.device)
        self.register_buffer("confusing_classes", confusing)
        experts = context.model.backbone.experts
        shape = (classes, dim) if experts == 1 else (experts, classes, dim)
        self.register_buffer("cam_weight", torch.zeros(shape, device=context.device))

    @hookimpl
    @torch.no_grad()
    def on_stage_start(self, context: Context) -> None:
        """Keep phase one's classifier weights, and find the confusing classes from its scores.

        The classifier is that of the frozen model of the stage before: the current one may have been rebuilt. Where
        nothing is augmented, nothing of this is read, and the pass over the training images is spared.
        """
        if not self.options.augmented:
            return
        classifier, classes = context.frozen_model().classifier, context.num_classes
        if isinstance(classifier, ExpertClassifiers):
            weight = torch.stack([torch.as_tensor(one.weight) for one in classifier.experts])
        else:
            weight = torch.as_tensor(classifier.weight)
        self.cam_weight.copy_(weight)
        # Added up on the CPU in float64: the same on every device, and [N, C] is never held at once.
        sums = torch.zeros(classes, classes, dtype=torch.float64)
        rows = max(1, _SCORES_AT_ONCE // classes)
        features, targets = context.training_features(), context.training_targets
        for start in range(0, len(targets), rows):
            scores = classifier(features[start : start + rows].to(weight.dtype)).float().softmax(1)
            sums.index_add_(0, targets[start : start + rows], scores.cpu().double())
        table = most_confusing(sums, context.class_counts.cpu(), self.options.confusing)
        self.confusing_classes.copy_(table)

    def reported(self, classes: Sequence[int], context: Context) -> list[ReportScatter]:
        """Class-specific beside class-generic vectors of training images (figures 4, 11 and 12): a vector an image.

        Of a network with experts, those of the first. Nothing where nothing is augmented.
        """
        if not self.options.augmented:
            return []
        targets, some = context.training_targets, []
        for label in classes:
            own = torch.nonzero(targets == label)[:, 0]
            some.append(own[torch.randperm(len(own), generator=context.cpu_generator)[:_SHOWN_IMAGES]])
        labels = targets[torch.cat(some)]
        specific, generic = [], []
        weight = self.cam_weight if self.cam_weight.dim() == 2 else self.cam_weight[0]
        for part in torch.split(torch.cat(some), _SHOWN_AT_ONCE):
            maps = context.model.backbone.forward_maps(context.images("train", part))[: len(part)]
            activation = class_activation_maps(maps, weight, targets[part].to(maps.device))
            specific.append(masked_mean(maps, specific_mask(activation, self.options.specific_threshold)))
            generic.append(masked_mean(maps, generic_mask(activation, self.options.generic_threshold)))
        panels = {
            "class-specific vectors": (torch.cat(specific), labels),
            "class-generic vectors": (torch.cat(generic), labels),
        }
        text = (
            "The mean of the feature vectors at the locations whose activation for the image's own class is at least "
            f"{self.options.specific_threshold:g} (class-specific), and at most {self.options.generic_threshold:g} "
            f"(class-generic), for at most {_SHOWN_IMAGES} training images of each class. The first should lie apart "
            "by class, the second should not (OFA, figure 4)."
        )
        return [ReportScatter("class-specific and class-generic vectors", text, panels)]

    @hookimpl
    def build_sampler(self, batch_size: int, context: Context) -> OFASampler:
        """Blocks of tail and head images.

        Raises:
            RecipeError: the batch size does not hold them.
        """
        head = head_classes(context.class_counts.cpu(), self.options.head_ratio)
        return OFASampler(
            training_targets=context.training_targets,
            num_classes=context.num_classes,
            head_mask=head,
            batch_size=batch_size,
            augmented=self.options.augmented,
        )

    @hookimpl
    def extra_rows(self, indices: list[Tensor], generator: torch.Generator, context: Context) -> list[Tensor] | None:
        """For each tail image of a batch, images of its confusing classes, which are taken in turn."""
        options, targets = self.options, context.training_targets
        if not options.augmented:
            return None
        in_turn = self.confusing_classes.cpu()[:, torch.arange(options.augmented) % options.confusing]
        pools = ClassPools(targets, context.num_classes)
        tails = len(indices[0]) // (2 + options.augmented)  # one of N_t, and N_t * (1 + N_a) of the head
        classes = in_turn[targets[torch.stack([batch[:tails] for batch in indices])]].flatten(1)
        return list(pools.draw_images(classes, generator))

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        """The rows, and behind them augmented samples of the tail images, fused with the confusing ones.

        Masks carry no gradient; the features that they choose keep theirs. With `augmented` 0 nothing is made.

        Raises:
            RecipeError: the batch was not laid out by OFA's sampler, or the tap needs images that are cached away.
        """
        if not self.options.augmented:
            return features
        return features.each_expert(lambda record, expert: self._with_fused(record, expert, context))

    def _with_fused(self, features: Features, expert: int, context: Context) -> Features:
        """The rows of one network, and the augmented ones behind them."""
        copies, extra = self.options.augmented, features.extra
        tails = features.layout.tail_rows if isinstance(features.layout, Blocks) else 0
        maps, targets = features.features, features.targets
        if not tails or extra is None or len(targets) < tails * (2 + copies) or maps.dim() != 4:
            raise RecipeError(
                f"the batch at '{self.tap}' ({len(targets)} rows, {maps.dim()} dimensions) has not the layout of OFA's "
                "sampler: tail images, then head images; is another sampler or another method that replaces rows "
                "before OFA in this stage?"
            )
        with torch.no_grad():
            activation = self._activation(features, extra, tails, expert, context)
            specific = specific_mask(activation[:tails], self.options.specific_threshold)
        pairs, locations = tails * copies, activation[0].numel()
        uniform = torch.rand(pairs, 1 + 2 * locations, generator=context.generator, device=maps.device)
        ratio, u_specific, u_generic = uniform[:, 0], uniform[:, 1 : 1 + locations], uniform[:, 1 + locations :]

        def for_each_copy(x: Tensor) -> Tensor:
            return x[:tails].repeat_interleave(copies, 0)

        tail, tail_mask, generic = for_each_copy(maps), for_each_copy(specific), extra.features
        if self.tap == "maps":
            rest = generic_mask(activation[tails:], self.options.generic_threshold)
            fused = fuse_pooled(tail, tail_mask, generic, rest, ratio, u_specific, u_generic)
        else:
            fused = fuse_spatial(tail, tail_mask, generic, activation[tails:], ratio, u_specific)
        made = features.append(fused, for_each_copy(targets), for_each_copy(features.source_index))
        return replace(made, extra=None)

    def _activation(self, features: Features, extra: Features, tails: int, expert: int, context: Context) -> Tensor:
        """Activation maps [rows, H, W] of the tail rows and the extra ones behind them, at the tap's resolution.

        At a tap before a network splits they are those of all its experts together.
        """
        targets = torch.cat([features.targets[:tails], extra.targets])
        if self.tap == "maps":
            maps = torch.cat([features.features[:tails], extra.features])
            weight = self.cam_weight if self.cam_weight.dim() == 2 else self.cam_weight[expert]
            return class_activation_maps(maps, weight, targets)
        if features.images is None or extra.images is None:
            raise RecipeError(
                f"tap '{self.tap}' lies inside the backbone, where the activation maps come from the batch's images, "
                "and this stage caches features; set cache: off"
            )
        images = torch.cat([features.images[:tails], extra.images])
        height, width = features.features.shape[2:]
        maps, weight = context.frozen_model().backbone.forward_maps(images), self.cam_weight
        if weight.dim() == 3:  # the mean of the experts' logits reads all their channels
            maps = maps.reshape(len(weight), -1, *maps.shape[1:]).transpose(0, 1).flatten(1, 2)
            weight = weight.transpose(0, 1).flatten(1)
        return class_activation_maps(maps, weight, targets, (height, width))
