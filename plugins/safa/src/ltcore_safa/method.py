"""SAFA as a method: its networks, the sampler's switch, the fold at the tap, and the terms of its loss."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from ltcore import Context, Features, Method, Options, RecipeError, Stage, hookimpl, largest_classes
from ltcore_safa.functional import (
    contrastive_loss,
    delta_cycle_loss,
    feature_cycle_loss,
    mode_seeking_loss,
    same_class,
    translate,
)
from ltcore_safa.modules import PairClassifier, conv_block
from ltcore_safa.sampler import Layout, PairSampler


class SAFAOptions(Options):
    """Options of SAFA; the defaults are the paper's for CIFAR, and the weights as the README reads them."""

    tap: str = "layer2"
    """Where features are augmented: `maps` or one of the backbone's inner taps. The paper's place is the output of the
    stage before the last down-sampling one: `layer2` of a CIFAR ResNet, `layer3` of an ImageNet ResNet."""
    start_epoch: int = Field(default=159, ge=0)
    """T_th: first epoch of the stage, counted from 0, in which SAFA acts. Before it training is plain."""
    head_ratio: float = Field(default=0.2, gt=0, lt=1)
    """beta: share of the classes, the most frequent first, that deltas are taken from; the rest is augmented."""
    hidden_channels: int | None = Field(default=None, ge=1)
    """Channels between the two convolutions of each network; by default as many as the tap has."""
    cycle: float = Field(default=1.0, ge=0)
    """lambda_1: weight of the cycle reconstruction; 0 switches the term off."""
    delta_cycle: float = Field(default=1.0, ge=0)
    """Weight of the delta direction (eq. 4) against the feature direction (eq. 5) within the cycle reconstruction."""
    tail_mode_seeking: float = Field(default=0.01, ge=0)
    """lambda_2: weight of the tail mode seeking; 0 switches the term off."""
    head_mode_seeking: float = Field(default=0.01, ge=0)
    """lambda_3: weight of the head mode seeking; 0 switches the term off."""
    contrastive: float = Field(default=0.1, ge=0)
    """lambda_4: weight of the contrastive loss; 0 switches the term off."""
    epsilon: float = Field(default=1e-3, gt=0)
    """Added to the denominators of the mode seeking, in the features' units."""

    @field_validator("tap")
    @classmethod
    def _spatial(cls, tap: str) -> str:
        if tap == "pooled":
            raise ValueError("SAFA convolves maps, and 'pooled' has none; use 'maps' or one of the backbone's taps")
        return tap


class SAFA(Method[SAFAOptions]):
    """Sample-adaptive feature augmentation: tail features moved along directions taken from pairs of head images.

    Networks, made when the run starts: `E` (delta), `D` (delta for a sample), `G` (feature) and `Q` (same class?).
    The buffer `trained` says whether a stage has trained them.
    """

    interface = "1.0"
    checked_with: ClassVar = {"start_epoch": 1}
    provides = frozenset({"paired_batches"})
    auxiliary = ("cycle", "tail_mode_seeking", "head_mode_seeking", "contrastive")
    E: nn.Module
    D: nn.Module
    G: nn.Module
    Q: nn.Module
    trained: Tensor

    def __init__(self, options: SAFAOptions | None = None) -> None:
        """Keep the options."""
        super().__init__(options)
        self._sampler: PairSampler | None = None
        self._terms: dict[str, Tensor] = {}  # of the step, between the fold and auxiliary_losses
        self.register_buffer("trained", torch.zeros((), dtype=torch.bool))

    @property
    def tap(self) -> str:
        """Where `augment_features` acts."""
        tap = self.options.tap
        return tap

    def check_stage(self, stage: Stage) -> None:
        """Refuse a stage that ends before SAFA starts, and a batch without room for a head and a tail pair."""
        if stage.epochs is not None:
            self._refuse_late_start(stage.epochs)
        if stage.batch_size < 4:
            raise RecipeError(
                f"batch_size {stage.batch_size} does not hold a pair of a head class and one of a tail class; "
                "use at least 4"
            )

    def _refuse_late_start(self, epochs: int) -> None:
        if self.options.start_epoch >= epochs:
            raise RecipeError(
                f"start_epoch {self.options.start_epoch} never comes in {epochs} epochs, counted from 0; set it to "
                "the epoch of the first drop of the learning rate, or shortly before"
            )

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make the networks for the maps at the tap.

        Raises:
            RecipeError: the tap has no maps.
        """
        shape = context.feature_shape(self.tap)
        if len(shape) != 3:
            raise RecipeError(
                f"tap '{self.tap}' has rows of shape {list(shape)}, and SAFA convolves maps [D, H, W]; take a tap of a "
                "convolutional backbone"
            )
        channels = shape[0]
        hidden = self.options.hidden_channels or channels
        self.E = conv_block(channels, channels, hidden)
        self.D = conv_block(2 * channels, channels, hidden)
        self.G = conv_block(channels, channels, hidden)
        self.Q = PairClassifier(channels, hidden)

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        """Refuse to augment with networks that were never trained.

        Raises:
            RecipeError: neither this stage nor one before trains them.
        """
        if any(parameter.requires_grad for parameter in self.parameters()):
            self.trained.fill_(True)
        elif not bool(self.trained):
            raise RecipeError(
                f"stage '{context.stage}' does not train SAFA's networks, and no stage before did; name the method in "
                "the stage's trainable: [backbone, classifier, safa]"
            )

    @hookimpl
    def build_sampler(self, batch_size: int, context: Context) -> PairSampler:
        """Plain batches before `start_epoch`, same-class pairs from it on."""
        head = largest_classes(context.class_counts.cpu(), self.options.head_ratio)
        self._sampler = PairSampler(
            context.training_targets, context.num_classes, head, batch_size, lambda: self._active(context)
        )
        return self._sampler

    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        """Refuse a stage given in iterations that ends before `start_epoch`, at its beginning."""
        self._refuse_late_start(context.epochs)

    def _active(self, context: Context) -> bool:
        start = self.options.start_epoch
        return context.epoch >= start

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        """The rows, and behind them one augmented row for each of the batch's tail rows, with its labels.

        Raises:
            RecipeError: the batch was not laid out by SAFA's sampler.
        """
        self._terms = {}
        if not self._active(context):
            return features
        layout = self._sampler.layout if self._sampler else None
        maps = features.features
        if layout is None or len(maps) < layout.batch_size:
            raise RecipeError(
                f"the batch at '{self.tap}' ({len(maps)} rows) has not the layout of SAFA's sampler; does another "
                "method drop rows before SAFA in this stage?"
            )
        generated = self._generate(maps, layout, context)
        begin = 2 * layout.head_pairs
        out = _append(features, generated.to(maps.dtype), slice(begin, begin + 2 * layout.tail_pairs))
        if self.options.contrastive:
            self._terms["contrastive"] = self._contrastive(out, layout, context)
        return out

    def _generate(self, maps: Tensor, layout: Layout, context: Context) -> Tensor:
        """Augmented maps [2 T, D, H, W] of the tail rows; the cycle and mode seeking terms are kept on the way."""
        options = self.options
        pairs, tails_at = layout.tail_pairs, 2 * layout.head_pairs
        heads, tails = maps[:tails_at], maps[tails_at : tails_at + 2 * pairs]
        # Each pair in both directions: deltas[k] leads from origins[k] to heads[k].
        origins = heads.roll(layout.head_pairs, 0)
        deltas = self.E(heads - origins)
        random, device = context.generator, maps.device
        one = torch.randint(tails_at, (pairs,), generator=random, device=device)
        other = (one + torch.randint(1, tails_at, (pairs,), generator=random, device=device)) % tails_at
        shared = torch.cat([one, one])  # the two rows of a tail pair have one delta; the first row has another, too
        sources, chosen = tails, shared
        if options.tail_mode_seeking:
            sources, chosen = torch.cat([tails, tails[:pairs]]), torch.cat([shared, other])
        made = translate(deltas[chosen], sources, self.D, self.G)
        generated, again = made[: 2 * pairs], made[2 * pairs :]
        first, second = generated[:pairs], generated[pairs:]
        if options.tail_mode_seeking:
            self._terms["tail_mode_seeking"] = mode_seeking_loss(
                deltas[one], deltas[other], first, again, options.epsilon
            ) + mode_seeking_loss(tails[:pairs], tails[pairs:], first, second, options.epsilon)
        if options.head_mode_seeking:
            self._terms["head_mode_seeking"] = mode_seeking_loss(
                heads[shared], origins[shared], generated, tails, options.epsilon
            )
        if options.cycle:
            found = self.E(generated - tails)
            rebuilt = translate(found, origins[shared], self.D, self.G)
            of_deltas = delta_cycle_loss(found, deltas[shared]) * options.delta_cycle
            self._terms["cycle"] = of_deltas + feature_cycle_loss(rebuilt, heads[shared])
        return generated

    def _contrastive(self, features: Features, layout: Layout, context: Context) -> Tensor:
        """Q's loss over the sampler's rows and the augmented ones, which are the last, shuffled and paired off."""
        rows, device = len(features.targets), context.device
        batch = torch.arange(layout.batch_size, device=device)
        own = torch.cat([batch, torch.arange(rows - 2 * layout.tail_pairs, rows, device=device)])
        order = own[torch.randperm(len(own), generator=context.generator, device=device)]
        half = len(own) // 2
        first, second = order[:half], order[half : 2 * half]
        same = same_class(first, second, features.targets, features.partner_targets, features.target_weight)
        return contrastive_loss(self.Q(features.features[first], features.features[second]), same)

    @hookimpl
    def auxiliary_losses(self, logits: Tensor) -> dict[str, Tensor]:
        """The terms of eq. 1, times their weights; 0 for those that are off and before `start_epoch`."""
        terms, self._terms = self._terms, {}
        zero = logits.new_zeros(())
        return {name: terms[name] * getattr(self.options, name) if name in terms else zero for name in self.auxiliary}


def _append(features: Features, made: Tensor, rows: slice) -> Features:
    """The record with rows made from those at `rows`, whose labels, mixed ones too, they carry."""
    appended = features.append(made, features.targets[rows], features.source_index[rows])
    partners, weight = features.partner_targets, features.target_weight
    if partners is None or weight is None:
        return appended
    return replace(
        appended,
        partner_targets=torch.cat([partners, partners[rows]]),
        target_weight=torch.cat([weight, weight[rows]]),
    )
