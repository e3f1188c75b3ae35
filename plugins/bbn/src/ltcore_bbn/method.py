"""The method `bbn`."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from ltcore import (
    Backbone,
    Batch,
    ClassPools,
    Context,
    Features,
    Method,
    Options,
    RecipeError,
    Stage,
    draw_classes,
    hookimpl,
)
from ltcore_bbn.functional import Rule, Sampling, branch_share, join, rebalancing_distribution, stack_pairs
from ltcore_bbn.network import BilateralNetwork, bilateral


class BBNOptions(Options):
    """Options of BBN; the defaults are the paper's."""

    alpha: Rule = "parabolic"
    """How the share of the conventional branch goes through the epochs: `parabolic`, or one of the paper's comparisons
    `linear`, `cosine`, `increment`, `equal` (1/2), `beta` (drawn in each step), `separate` (1, later 0)."""
    period: int | None = Field(default=None, ge=1)
    """T_max, the epochs after which the share has arrived; by default the stage's. The published code takes 100 for 90
    epochs and 200 for 180."""
    sampling: Sampling = "reversed"
    """Which images the re-balancing branch meets: of classes in proportion to `1 / N_k` (`reversed`), of all classes
    equally (`balanced`), or any (`uniform`)."""
    beta: float = Field(default=0.2, gt=0)
    """Both parameters of the Beta distribution of `alpha: beta`."""
    separate_epoch: int = Field(default=120, ge=1)
    """First epoch of the stage, counted from 0, in which `alpha: separate` is 0."""


class BBN(Method[BBNOptions]):
    """Bilateral-branch network with cumulative learning (Zhou et al. 2020).

    Under ``backbone.adapt`` it doubles the network's last block (`BilateralNetwork`). In a stage, each row of a batch
    is a pair: an image of the batch and one that a reversed sampler draws. Both labels count, with the shares alpha and
    1 - alpha that the branches' features have.
    """

    interface = "1.1"
    breaks = frozenset({"hard_labels", "single_images"})

    def check_stage(self, stage: Stage) -> None:
        """Refuse a period that ends before the stage does."""
        if stage.epochs is not None:
            self._refuse_short_period(stage.epochs)

    def _refuse_short_period(self, epochs: int) -> None:
        period = self.options.period
        if period is not None and period < epochs - 1:
            raise RecipeError(
                f"option period is {period}, and the stage has {epochs} epochs; set it to as many or more, or omit it"
            )

    @hookimpl
    def adapt_backbone(self, backbone: Backbone) -> BilateralNetwork:
        """The network with its last block twice.

        Raises:
            RecipeError: it has no block that can be doubled.
        """
        return bilateral(backbone)

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        """Refuse a network that has one branch.

        Raises:
            RecipeError: the recipe does not name the method under ``backbone.adapt``.
        """
        if not isinstance(context.model.backbone, BilateralNetwork):
            raise RecipeError(
                f"stage '{context.stage}' trains two branches, and the backbone has one; name the method under the "
                f"backbone too, as the last one there: backbone: {{use: ..., adapt: [{context.name}]}}"
            )

    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        """Refuse a short period in a stage given in iterations, at its beginning."""
        self._refuse_short_period(context.epochs)

    @hookimpl
    def extra_rows(self, indices: list[Tensor], generator: torch.Generator, context: Context) -> list[Tensor]:
        """The re-balancing branch's images: for each batch as many as it has, with replacement."""
        sizes = [len(batch) for batch in indices]
        weights = rebalancing_distribution(context.class_counts.cpu(), self.options.sampling)
        pools = ClassPools(context.training_targets, context.num_classes)
        drawn = pools.draw_images(draw_classes(weights, (sum(sizes),), generator), generator)
        return list(torch.split(drawn, sizes))

    def _share(self, context: Context) -> float:
        """The step's alpha."""
        options = self.options
        return branch_share(
            options.alpha,
            context.epoch,
            options.period or context.epochs,
            beta=options.beta,
            separate=options.separate_epoch,
            seed=context.generator.initial_seed(),  # the step's, on the host
        )

    @hookimpl
    def mix_inputs(self, batch: Batch, context: Context) -> Batch:
        """Each row with its image of the re-balancing sampler, both labels, and alpha for the first.

        Of rows that have two labels already one is drawn by their shares: a row has room for no third, and over the
        draws it is the loss of all.
        """
        assert batch.extra is not None  # asked for in every epoch
        targets = batch.targets
        if batch.partner_targets is not None and batch.target_weight is not None:
            uniform = torch.rand(len(targets), generator=context.generator, device=context.device)
            targets = torch.where(uniform < batch.target_weight, targets, batch.partner_targets)
        return replace(
            batch,
            targets=targets,
            images=stack_pairs(batch.images, batch.extra.images),
            partner_targets=batch.extra.targets,
            target_weight=torch.full_like(batch.targets, self._share(context), dtype=torch.float32),
            extra=None,
        )

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        """The batch's rows with their branches weighed by alpha; rows that other methods made stay as they are."""
        joined = join(features.features, self._share(context))
        return replace(features, features=torch.where(features.synthetic[:, None], features.features, joined))
