"""The methods `gra_loss`, `afg` and `distillation`."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ltcore import (
    Context,
    DataError,
    ExpertClassifiers,
    Features,
    Method,
    Options,
    RecipeError,
    Stage,
    class_balanced_distribution,
    evaluating,
    hookimpl,
    nearest_classes,
    row_logits,
)
from ltcore_glag.functional import (
    Form,
    Score,
    adapt_confidence,
    class_log_prior,
    class_scores,
    distillation_loss,
    gradual_alpha,
    gradual_logits,
    pooled_scores,
)
from ltcore_glag.gaussians import FeatureBank, calibrated_means, descend, deviations, feature_bank, ladder, support_set

#: Held-out scores that are held at once.
_SCORES_AT_ONCE = 2**24


class GradualOptions(Options):
    """Options of the strength that grows with the epochs, see `gradual_alpha`; the defaults are the paper's."""

    scale: float = Field(default=1.0, ge=0)
    """s: the strength ends at s * (c - 1); 0.5 in the paper on iNaturalist. 0 changes nothing."""
    base: float = Field(default=2.0, gt=1)
    """c: how bent the curve is."""
    form: Form = "convex"
    """How the strength grows: `convex`, `linear` or `concave`, all three to the same end."""

    def alpha(self, context: Context) -> float:
        """The strength in the current epoch of the stage."""
        return gradual_alpha(context.epoch, context.epochs, self.scale, self.base, self.form)


class GraLoss(Method[GradualOptions]):
    """Gradual balanced loss: logit adjustment whose strength grows from 0 with the epochs of its stage."""

    interface = "1.0"
    log_prior: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep ``log p`` [C] in a buffer.

        Raises:
            DataError: a class has no training images.
        """
        try:
            log_prior = class_log_prior(context.class_counts)
        except ValueError as error:
            raise DataError(str(error)) from error
        self.register_buffer("log_prior", log_prior)

    @hookimpl
    def adjust_logits(self, logits: Tensor, context: Context) -> Tensor:
        """``z + alpha * log p``, [N, C]."""
        return gradual_logits(logits, self.log_prior, self.options.alpha(context))


def head_classes(class_counts: Tensor, head_images: int) -> Tensor:
    """Which classes are head classes: those with more than `head_images` images. [C] to [C] bool."""
    return class_counts > head_images


class AFGOptions(Options):
    """Options of the adaptive feature generator; the defaults are the paper's where it gives any."""

    power: float = Field(default=0.5, ge=0)
    """lambda: the power of Tukey's ladder; 0 is the logarithm, 1 changes nothing. Features below 0 count as 0."""
    space: Literal["ladder", "printed"] = "ladder"
    """Where the Gaussians are. `ladder`: statistics are those of features on the ladder, and a draw comes back by the
    inverse power. `printed` (equations 5 to 9): statistics are those of features as they are, only the tail row is on
    the ladder, and nothing comes back."""
    neighbours: int = Field(default=2, ge=1)
    """K: from how many larger classes a tail sample learns; 2 or 3 in the paper."""
    dispersion: float = Field(default=0.0, ge=0)
    """gamma: variance that is added in every dimension of the ladder's space; 0 or 0.1 in the paper."""
    confidence: float = Field(default=0.6, ge=0, le=1)
    """beta at the start, for each tail class; 0.4 in the paper's ablation."""
    confidence_step: float = Field(default=0.1, ge=0, le=1)
    """By how much beta rises or falls when it moves; 0 keeps it. Not in the paper."""
    score: Score = "accuracy"
    """What is measured on the held-out images: the `accuracy` of the paper, or the mean `probability` of their own
    class, which one image can move."""
    window: int = Field(default=1, ge=1)
    """Generation epochs whose scores are averaged before beta moves, once; 1 in the paper."""
    pooled_classes: int = Field(default=0, ge=0)
    """How many of the nearest tail classes count in a class's score beside itself; 0 in the paper. Their own means, not
    those of head classes, which lose what tail classes win."""
    generation_epochs: int | None = Field(default=None, ge=1)
    """How many generation epochs the stage has, each the same number of epochs; by default every epoch is one."""
    head_images: int = Field(default=100, ge=0)
    """Head classes have more training images than this; they are drawn from their own Gaussian. Not in the paper."""
    draw_images: int = Field(default=32, ge=2)
    """A draw of a class is made of at most this many of its images; see `deviations`."""


class AFG(Method[AFGOptions]):
    """Adaptive feature generator: draws from calibrated Gaussians fill every class up to the largest.

    Classes are drawn equally often; a row of class c stays as it is with probability ``n_c / n_max``, and else becomes
    a draw from its own calibrated Gaussian. Buffers: the confidence `beta` [C]; on held-out training images the `score`
    [C] when beta last moved, the sum of the scores since (`recent` [C]), and whose images count (`pools`
    [C, 1 + pooled_classes]). In a network with experts each has Gaussians of its own features, and all one confidence,
    from the held-out score of their common logits.
    """

    interface = "1.1"
    checked_with: ClassVar = {"head_images": 10}
    requires = frozenset({"earlier_stage", "fixed_backbone", "hard_labels", "validation"})
    beta: Tensor
    score: Tensor
    recent: Tensor
    pools: Tensor
    tail: Tensor
    real_share: Tensor

    def __init__(self, options: AFGOptions | None = None) -> None:
        """Keep the options."""
        super().__init__(options)
        # No buffer: it is as large as the training features, and is made of them again in a resumed stage.
        self._banks: tuple[FeatureBank, ...] = ()
        self._bank_of = -1

    def check_stage(self, stage: Stage) -> None:
        """Refuse a stage that has not as many epochs as generation epochs."""
        wanted = self.options.generation_epochs
        if wanted and stage.epochs and wanted > stage.epochs:
            raise RecipeError(
                f"option generation_epochs is {wanted}, but the stage has only {stage.epochs} epochs; "
                "lower it, or lengthen the stage"
            )

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make the buffers, and check that the options fit the class counts.

        Raises:
            DataError: there is no tail class.
            RecipeError: there are not enough other classes to learn from, or not enough tail classes to pool.
        """
        options, counts = self.options, context.class_counts
        tail = ~head_classes(counts, options.head_images)
        if not bool(tail.any()):
            raise DataError(
                f"every class has more than head_images {options.head_images} training images, so there is no tail to "
                "generate; raise head_images"
            )
        if options.neighbours >= context.num_classes:
            raise RecipeError(
                f"option neighbours is {options.neighbours}, but a class has only {context.num_classes - 1} others; "
                "lower it"
            )
        if options.pooled_classes >= int(tail.sum()):
            raise RecipeError(
                f"option pooled_classes is {options.pooled_classes}, but a tail class has only {int(tail.sum()) - 1} "
                "others beside it; lower it"
            )
        self.register_buffer("tail", tail)
        self.register_buffer("real_share", counts.float() / counts.max())
        self.register_buffer("beta", options.confidence * tail.float())
        self.register_buffer("score", torch.full((len(counts),), torch.nan, device=counts.device))
        self.register_buffer("recent", torch.zeros(len(counts), device=counts.device))
        own = torch.arange(len(counts), device=counts.device)
        self.register_buffer("pools", own[:, None].repeat(1, 1 + options.pooled_classes))

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        """Begin with the confidence of the options, and the score before anything was generated."""
        self.beta.copy_(self.options.confidence * self.tail)
        if self.options.pooled_classes:
            means = context.class_means().flatten(1)
            others = self.tail & ~torch.eye(len(means), dtype=torch.bool, device=means.device)
            self.pools[:, 1:] = nearest_classes(means, means, others, self.options.pooled_classes)[0]
        self.score.copy_(self._held_out_score(context))
        self.recent.zero_()

    def logged(self) -> dict[str, Tensor]:
        """The confidence of each tail class in the epoch, and the held-out score that it was last compared with."""
        return {"confidence": torch.where(self.tail, self.beta, torch.nan), "held-out score": self.score}

    @hookimpl
    def class_distribution(self, context: Context) -> Tensor:
        """Every class equally often, [C]; core asks in each epoch, a resumed one too, so the bank is made here."""
        if not self._banks or self._bank_of != context.stage_index:
            power = self.options.power if self.options.space == "ladder" else 1.0
            features, targets = context.training_features(), context.training_targets
            each = [features] if features.dim() == 2 else features.unbind(1)
            self._banks = tuple(feature_bank(one, targets, context.class_counts, power) for one in each)
            self._bank_of = context.stage_index
        return class_balanced_distribution(context.class_counts)

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        """Replace rows by draws from their calibrated Gaussians, with probability ``1 - n_c / n_max``, [N, D]."""
        return features.each_expert(lambda record, expert: self._filled(record, expert, context.generator))

    def _filled(self, features: Features, expert: int, generator: torch.Generator) -> Features:
        """The rows of one network, some of them replaced."""
        x, targets = features.features, features.targets
        chance = torch.rand(len(targets), generator=generator, device=x.device)
        replaced = (chance >= self.real_share[targets]) & ~features.synthetic
        drawn = self.generate(x, targets, generator, expert)
        return replace(
            features,
            features=torch.where(replaced[:, None], drawn, x),
            synthetic=features.synthetic | replaced,
        )

    @torch.no_grad()
    def generate(self, features: Tensor, targets: Tensor, generator: torch.Generator, expert: int = 0) -> Tensor:
        """One draw from the calibrated Gaussian of each row (equations 7 to 10); a head class's from its own.

        Args:
            features: [N, D], at ``pooled``.
            targets: [N] int64.
            generator: on the device.
            expert: whose features they are, in a network with experts.

        Returns:
            [N, D] in the dtype of `features`.

        Raises:
            RecipeError: no statistics were made: the hook ``class_distribution`` was not called in this stage.
        """
        options = self.options
        if not self._banks:
            raise RecipeError("has no statistics of the training features yet; they are made when an epoch begins")
        bank, device, rows = self._banks[expert], features.device, len(targets)
        shape = (rows, 1 + options.neighbours, options.draw_images)
        normal = torch.randn(shape, generator=generator, device=device)
        uniform = torch.rand(shape, generator=generator, device=device)
        with torch.autocast(device.type, enabled=False):
            x = ladder(features.float(), options.power)
            classes, weights = support_set(x, targets, bank, options.neighbours)
            tail = self.tail[targets]
            beta = self.beta[targets] * tail * (weights.sum(1) > 0)
            around = torch.where(tail[:, None], x, bank.means[targets])
            mean = calibrated_means(around, beta, bank.means[classes], weights)
            scale = torch.cat([(1 - beta)[:, None], beta[:, None] * weights.sqrt()], dim=1)
            every = torch.cat([targets[:, None], classes], dim=1)
            drawn = mean + deviations(bank, every, scale, normal, uniform)
            if options.dispersion:
                noise = torch.randn(x.shape, generator=generator, device=device)
                drawn = drawn + options.dispersion**0.5 * tail[:, None] * noise
            return (descend(drawn, options.power) if options.space == "ladder" else drawn).to(features.dtype)

    @hookimpl
    def on_epoch_end(self, context: Context) -> None:
        """After `window` generation epochs, let each tail class's confidence follow its held-out score."""
        window = self.options.window
        generations = min(self.options.generation_epochs or context.epochs, context.epochs)
        done, before = ((epoch * generations) // context.epochs for epoch in (context.epoch + 1, context.epoch))
        if done == before:
            return
        self.recent += self._held_out_score(context)
        if done % window:
            return
        score = self.recent / window
        moved = adapt_confidence(self.beta, score, self.score, self.options.confidence_step)
        self.beta.copy_(torch.where(self.tail, moved, self.beta))
        self.score.copy_(score)
        self.recent.zero_()

    def _held_out_score(self, context: Context) -> Tensor:
        """Score of each class on the validation images, [C]; NaN for a class that has none, nor any pooled with it."""
        features, targets = context.validation_features(), context.validation_targets
        targets, classifier = targets.to(features.device), context.model.classifier
        rows = max(1, _SCORES_AT_ONCE // context.num_classes)
        parts = zip(torch.split(features, rows), torch.split(targets, rows), strict=True)
        with evaluating(classifier):
            one = classifier.experts[0] if isinstance(classifier, ExpertClassifiers) else classifier
            dtype = torch.as_tensor(one.weight).dtype
            scores = [class_scores(classifier(x.to(dtype)), y, self.options.score) for x, y in parts]
        return pooled_scores(torch.cat(scores), targets, self.pools).float()


class DistillationOptions(GradualOptions):
    """Options of knowledge distillation; its strength has GraLoss's form (equation 11)."""

    temperature: float = Field(default=1.0, gt=0)
    """What the logits of both models are divided by."""
    teacher: str | None = None
    """The stage whose model teaches; by default the stage before."""
    head_images: int = Field(default=100, ge=0)
    """Only samples of head classes are taught: of classes with more training images than this."""


class Distillation(Method[DistillationOptions]):
    """Knowledge distillation from an earlier stage's classifier, on samples of head classes only.

    The term ``kd`` is the batch's sum over head-class rows, real and generated, divided by the batch's rows, as
    equation 11 is a loss a sample. In a network with experts each of them is taught by itself.
    """

    interface = "1.1"
    checked_with: ClassVar = {"head_images": 10}
    requires = frozenset({"earlier_stage", "fixed_backbone", "hard_labels"})
    auxiliary = ("kd",)
    head: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Keep which classes are head classes, [C], in a buffer.

        Raises:
            DataError: there are none.
        """
        head = head_classes(context.class_counts, self.options.head_images)
        if not bool(head.any()):
            raise DataError(
                f"no class has more than head_images {self.options.head_images} training images (the largest has "
                f"{int(context.class_counts.max())}), so nothing would be distilled; lower head_images"
            )
        self.register_buffer("head", head)

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        """See that the teacher's stage is there.

        Raises:
            RunError: it is not.
        """
        context.frozen_model(self.options.teacher)

    @hookimpl
    def auxiliary_losses(self, features: Features, logits: Tensor, context: Context) -> dict[str, Tensor]:
        """``alpha * KD`` over the rows that reach the classifier; 0 in the first epoch."""
        alpha = self.options.alpha(context)
        if alpha == 0:
            return {"kd": logits.new_zeros(())}
        with torch.no_grad():
            classifier = context.frozen_model(self.options.teacher).classifier
            teacher = row_logits(classifier, features.features, features.expert).float()
        values = distillation_loss(logits, teacher, self.options.temperature)
        return {"kd": alpha * (values * self.head[features.targets]).sum() / len(values)}
