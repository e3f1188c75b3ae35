"""The method `lfme`."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ltcore import Context, DataError, Features, Method, Options, RecipeError, Stage, evaluating, hookimpl
from ltcore_lfme.functional import (
    class_groups,
    distillation_loss,
    expert_weights,
    group_accuracies,
    growing_weights,
    start_weights,
)
from ltcore_lfme.group import ClassGroup

#: Images that the experts look at at once, outside of steps.
_AT_ONCE = 256


def _range(counts: Tensor) -> str:
    return f"{int(counts.min())} to {int(counts.max())}"


class LFMEOptions(Options):
    """Options of LFME; the defaults are those of the published code, and its weights for images act as in the paper."""

    experts: list[str] = Field(default=["many", "medium", "few"], min_length=1)
    """The earlier stages whose networks teach, from the most frequent group of classes to the rarest."""
    least: list[Annotated[int, Field(ge=1)]] = Field(default=[100, 21])
    """For each group but the last, the fewest training images of its classes, descending."""
    temperature: float = Field(default=2.0, gt=0.0)
    """What the logits of student and expert are divided by."""
    threshold: float = Field(default=0.3, ge=0.0, lt=1.0)
    """Until the student has this share of an expert's held-out accuracy, the expert teaches with all its weight."""
    curriculum: Literal["loss", "logits", "off"] = "loss"
    """What a weight of each image scales: its `loss`, up to 1; its `logits`, as in the code, and beyond 1; or `off`."""
    curriculum_share: float = Field(default=0.5, gt=0.0, le=1.0)
    """The share of the stage's epochs after which all images weigh 1."""

    @model_validator(mode="after")
    def _one_group_an_expert(self) -> LFMEOptions:
        if len(self.least) != len(self.experts) - 1:
            raise ValueError(
                f"{len(self.experts)} experts have {len(self.experts) - 1} bounds between their groups, and least has "
                f"{len(self.least)}"
            )
        if self.least != sorted(set(self.least), reverse=True):
            raise ValueError(f"least should descend from each group to the next, not {self.least}")
        return self


class LFME(Method[LFMEOptions]):
    """Learning from multiple experts (Xiang et al. 2020): networks of groups of classes teach one of all classes.

    Attributes:
        groups: [C] int64, the group of each class.
        expert_accuracy: [L], each expert's accuracy on the held-out images of its group, among its own classes.
        student_accuracy: [L], that of the network that trains, among all classes, after the last epoch.
    """

    interface = "1.1"
    checked_with: ClassVar = {"experts": ["first", "first"], "least": [15]}
    auxiliary = ("distillation",)
    groups: Tensor
    expert_accuracy: Tensor
    student_accuracy: Tensor

    def __init__(self, options: LFMEOptions | None = None) -> None:
        """Keep the options."""
        super().__init__(options)
        # No buffer: as long as the training split, and found again by a run that goes on.
        self._start: Tensor | None = None
        self._start_of = -1

    @property
    def requires(self) -> Set[str]:
        """Held-out images, and, with a curriculum, one label per image."""
        needs = {"earlier_stage", "single_images", "validation"}
        return needs if self.options.curriculum == "off" else {*needs, "hard_labels"}

    def check_stage(self, stage: Stage) -> None:
        """Refuse cached features: experts look at images."""
        if stage.cache != "off":
            raise RecipeError("the experts look at the batch's images, and a cache has none; leave cache out")

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make the buffers, and see that the groups are those of the experts.

        Raises:
            DataError: a group has no class.
            RecipeError: methods `class_group` of the recipe have other groups.
        """
        options, counts = self.options, context.class_counts
        groups = class_groups(counts, options.least)
        sizes = torch.bincount(groups, minlength=len(options.experts)).tolist()
        if 0 in sizes:
            raise DataError(
                f"no class is of the group of '{options.experts[sizes.index(0)]}': with least {options.least} the "
                f"groups have {sizes} classes; classes have from {int(counts.min())} to {int(counts.max())} training "
                "images"
            )
        taught = [groups == number for number in range(len(sizes))]
        trained = [one.options.members(counts) for one in context.model.methods.values() if isinstance(one, ClassGroup)]
        untaught = [one for one in trained if not any(torch.equal(one, group) for group in taught)]
        for number, group in enumerate(taught if untaught else ()):
            if not any(torch.equal(one, group) for one in trained):
                raise RecipeError(
                    f"with least {options.least} the classes of expert '{options.experts[number]}' have "
                    f"{_range(counts[group])} training images, and no class_group of the recipe has these classes, but "
                    f"one those of {_range(counts[untaught[0]])} images; give both the same bounds"
                )
        self.register_buffer("groups", groups)
        unknown = torch.full((len(options.experts),), torch.nan, dtype=torch.float64, device=counts.device)
        self.register_buffer("expert_accuracy", unknown)
        self.register_buffer("student_accuracy", torch.zeros_like(unknown))

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        """Measure the experts on the held-out images, each among its own classes.

        Raises:
            RunError: a stage of an expert is not there.
        """
        targets = context.validation_targets
        right = self._by_group(context, "val", targets).argmax(1) == targets.to(context.device)
        self.expert_accuracy.copy_(self._accuracies(right, targets))
        self.student_accuracy.zero_()

    def _accuracies(self, right: Tensor, targets: Tensor) -> Tensor:
        return group_accuracies(right, targets.to(right.device), self.groups, len(self.options.experts))

    def _by_group(self, context: Context, split: str, targets: Tensor) -> Tensor:
        """For each image what the expert of its class's group says of its classes: [N, C] probabilities."""
        groups = self.groups.cpu()
        found = torch.zeros(len(targets), context.num_classes, device=context.device)
        for number, stage in enumerate(self.options.experts):
            expert, outside = context.frozen_model(stage), self.groups != number
            with evaluating(expert):
                for indices in torch.split((groups[targets] == number).nonzero()[:, 0], _AT_ONCE):
                    logits = expert(context.images(split, indices)).float().masked_fill(outside, -torch.inf)
                    found[indices.to(found.device)] = logits.softmax(1)
        return found

    @hookimpl
    def extra_rows(self, context: Context) -> None:
        """No rows of its own: here, also in a run that goes on, the images' starting weights are found."""
        if self.options.curriculum == "off" or self._start_of == context.stage_index:
            return
        targets = context.training_targets
        sure = self._by_group(context, "train", targets)
        targets = targets.to(sure.device)
        own = sure.gather(1, targets[:, None])[:, 0]
        self._start = start_weights(own, targets, context.class_counts, self.groups)
        self._start_of = context.stage_index

    def _weights(self, features: Features, context: Context) -> Tensor:
        """What each row weighs in this epoch, [N]; a made row as the image whose label it has."""
        assert self._start is not None  # found when the epoch began
        share = (context.epoch + 1) / (self.options.curriculum_share * context.epochs)
        if self.options.curriculum == "loss":
            share = min(1.0, share)
        return growing_weights(self._start[features.source_index], share)

    @hookimpl
    def adjust_logits(self, logits: Tensor, features: Features, context: Context) -> Tensor:
        """With ``curriculum: logits``, logits [N, C] times what their rows weigh."""
        if self.options.curriculum != "logits":
            return logits
        return self._weights(features, context)[:, None] * logits

    @hookimpl
    def sample_weights(self, features: Features, context: Context) -> Tensor | None:
        """With ``curriculum: loss``, what each row weighs, [N]."""
        return self._weights(features, context) if self.options.curriculum == "loss" else None

    @hookimpl
    def auxiliary_losses(self, features: Features, logits: Tensor, context: Context) -> dict[str, Tensor]:
        """The experts' lessons on all images of the batch, each by its weight, 0-d."""
        images, options = features.images, self.options
        assert images is not None  # a cache is refused
        student = self.adjust_logits(logits=logits, features=features, context=context)
        real = [student[rows][: len(images)] for rows in features.expert_rows or (slice(0, len(images)),)]
        weights = expert_weights(self.student_accuracy, self.expert_accuracy, options.threshold).float()
        loss = logits.new_zeros(())
        for number, stage in enumerate(options.experts):
            with torch.no_grad():
                expert = context.frozen_model(stage)(images).float()
            members = self.groups == number
            lessons = [distillation_loss(rows, expert, members, options.temperature).mean() for rows in real]
            loss = loss + weights[number] * torch.stack(lessons).mean()
        return {"distillation": loss}

    @hookimpl
    def on_epoch_end(self, context: Context) -> None:
        """Measure the student on the held-out images, among all classes."""
        features, targets = context.validation_features().float(), context.validation_targets
        classifier = context.model.classifier
        with evaluating(classifier):
            guesses = [classifier(part).argmax(1) for part in torch.split(features, _AT_ONCE)]
        right = torch.cat(guesses) == targets.to(features.device)
        self.student_accuracy.copy_(self._accuracies(right, targets).nan_to_num(0.0))

    def logged(self) -> Mapping[str, Tensor]:
        """The weight that each expert had in the epoch."""
        weights = expert_weights(self.student_accuracy, self.expert_accuracy, self.options.threshold)
        return {f"weight of {stage}": weights[number] for number, stage in enumerate(self.options.experts)}
