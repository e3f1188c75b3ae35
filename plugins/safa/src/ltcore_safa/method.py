"""SAFA as a method: its networks, the sampler's switch, the fold at the tap, and the terms of its loss."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ltcore import Context, Features, Method, RecipeError, Stage, hookimpl, largest_classes
from ltcore_safa.functional import (
    channel_statistics,
    contrastive_loss,
    delta_cycle_loss,
    feature_cycle_loss,
    mode_seeking_loss,
    same_class,
    translate,
)
from ltcore_safa.modules import FIRST_CHANGE, PairClassifier, begin_as_identity, begin_random, conv_block
from ltcore_safa.options import SAFAOptions
from ltcore_safa.sampler import Layout, PairSampler


class SAFA(Method[SAFAOptions]):
    """Sample-adaptive feature augmentation: tail features moved along directions taken from pairs of head images.

    Networks, made when the run starts: `E` (delta), `D` (delta for a sample), `G` (feature) and `Q` (same class?).
    The buffer `trained` says whether a stage has trained them.
    """

    interface = "1.1"
    checked_with: ClassVar = {"start_epoch": 1}
    provides = frozenset({"paired_batches"})
    requires = frozenset({"one_network"})
    auxiliary = ("cycle", "tail_mode_seeking", "head_mode_seeking", "contrastive")
    E: nn.Module
    D: nn.Module
    G: nn.Module
    Q: nn.Module
    trained: Tensor

    def __init__(self, options: SAFAOptions | None = None) -> None:
        """Keep the options."""
        super().__init__(options)
        self.register_buffer("trained", torch.zeros((), dtype=torch.bool))

    @property
    def tap(self) -> str:
        """Where `augment_features` acts."""
        tap = self.options.tap
        return tap

    def check_stage(self, stage: Stage) -> None:
        """Refuse a batch without room for a head and a tail pair."""
        if stage.batch_size < 4:
            raise RecipeError(
                f"batch_size {stage.batch_size} does not hold a pair of a head class and one of a tail class; "
                "use at least 4"
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
        added = self.options.generation == "added"
        self.E = begin_random(conv_block(channels, channels, hidden), 1)
        self.D = begin_random(conv_block(2 * channels, channels, hidden), 1 if added else FIRST_CHANGE)
        generator = conv_block(channels, channels, hidden)
        self.G = begin_random(generator, FIRST_CHANGE) if added else begin_as_identity(generator)
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
        return PairSampler(
            context.training_targets, context.num_classes, head, batch_size, lambda: self._active(context)
        )

    def _active(self, context: Context) -> bool:
        start = self.options.start_epoch
        return context.epoch >= start

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        """The rows, and behind them one augmented row for each of the batch's tail rows, with its labels.

        Raises:
            RecipeError: the batch was not laid out by SAFA's sampler.
        """
        if not self._active(context):
            return self._with_terms(features, {}, context)
        layout, maps = features.layout, features.features
        if not isinstance(layout, Layout) or len(maps) < layout.batch_size:
            raise RecipeError(
                f"the batch at '{self.tap}' ({len(maps)} rows) has not the layout of SAFA's sampler; does another "
                "method drop rows before SAFA in this stage?"
            )
        options = self.options
        rows = maps[: layout.batch_size]
        rows = rows.detach() if options.detach else rows
        mean, deviation = torch.zeros((), device=maps.device), torch.ones((), device=maps.device)
        if options.standardise:
            mean, deviation = channel_statistics(rows)
            rows = (rows - mean) / deviation
        generated, terms = self._generate(rows, layout, context)
        begin = 2 * layout.head_pairs
        made = (mean + deviation * generated).to(maps.dtype)
        out = _append(features, made, slice(begin, begin + 2 * layout.tail_pairs))
        if options.contrastive:
            terms["contrastive"] = self._contrastive(torch.cat([rows, generated]), out, layout, context)
        end = len(out.targets)
        return self._with_terms(out, terms, context).keeping(context.name, slice(end - len(made), end))

    def _with_terms(self, features: Features, terms: dict[str, Tensor], context: Context) -> Features:
        """The record with the terms of eq. 1, times their weights; 0 for those that are off and before the start."""
        zero, options = torch.zeros((), device=context.device), self.options
        weighed = {name: terms[name] * getattr(options, name) if name in terms else zero for name in self.auxiliary}
        return features.with_losses(context.name, **weighed)

    def _generate(self, rows: Tensor, layout: Layout, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """Augmented maps [2 T, D, H, W] of the tail rows, and the cycle and mode seeking terms, 0-d."""
        options, terms = self.options, dict[str, Tensor]()
        added, epsilon, constant = options.generation == "added", options.epsilon, options.numerators == "constant"
        pairs, tails_at = layout.tail_pairs, 2 * layout.head_pairs
        heads, tails = rows[:tails_at], rows[tails_at : tails_at + 2 * pairs]
        # Each pair in both directions: deltas[k] leads from origins[k] to heads[k].
        origins = heads.roll(layout.head_pairs, 0)
        deltas = self.E(heads - origins)
        random, device = context.generator, rows.device
        one = torch.randint(tails_at, (pairs,), generator=random, device=device)
        other = (one + torch.randint(1, tails_at, (pairs,), generator=random, device=device)) % tails_at
        shared = torch.cat([one, one])  # the two rows of a tail pair have one delta; the first row has another, too
        sources, chosen = tails, shared
        if options.tail_mode_seeking:
            sources, chosen = torch.cat([tails, tails[:pairs]]), torch.cat([shared, other])
        made = translate(deltas[chosen], sources, self.D, self.G, added)
        generated, again = made[: 2 * pairs], made[2 * pairs :]
        first, second = generated[:pairs], generated[pairs:]
        if options.tail_mode_seeking:
            terms["tail_mode_seeking"] = mode_seeking_loss(
                deltas[one], deltas[other], first, again, epsilon, constant
            ) + mode_seeking_loss(tails[:pairs], tails[pairs:], first, second, epsilon, constant)
        if options.head_mode_seeking:
            terms["head_mode_seeking"] = mode_seeking_loss(
                heads[shared], origins[shared], generated, tails, epsilon, constant
            )
        if options.cycle:
            found = self.E(generated - tails)
            rebuilt = translate(found, origins[shared], self.D, self.G, added)
            of_deltas = delta_cycle_loss(found, deltas[shared], options.cycle_halves == "even") * options.delta_cycle
            terms["cycle"] = of_deltas + feature_cycle_loss(rebuilt, heads[shared])
        return generated, terms

    def _contrastive(self, rows: Tensor, features: Features, layout: Layout, context: Context) -> Tensor:
        """Q's loss over the sampler's rows and the augmented ones behind them, shuffled and paired off."""
        device, last = context.device, len(features.targets)
        batch = torch.arange(layout.batch_size, device=device)
        # Where those rows stand in the record, in which an earlier method's rows may lie between the two.
        own = torch.cat([batch, torch.arange(last - 2 * layout.tail_pairs, last, device=device)])
        order = torch.randperm(len(own), generator=context.generator, device=device)
        half = len(own) // 2
        first, second = order[:half], order[half : 2 * half]
        same = same_class(own[first], own[second], features.targets, features.partner_targets, features.target_weight)
        return contrastive_loss(self.Q(rows[first], rows[second]), same)

    @hookimpl
    def sample_weights(self, values: Tensor, features: Features, context: Context) -> Tensor | None:
        """Augmented rows count for `generated_weight` times what the others do, in a weighted mean."""
        made = features.kept.get(context.name)
        if made is None or self.options.generated_weight == 1:
            return None
        weights = torch.ones_like(values)
        weights[made] = self.options.generated_weight
        return weights * (len(weights) / weights.sum())


def _append(features: Features, made: Tensor, rows: slice) -> Features:
    """The record with rows made from those at `rows`, whose labels, mixed ones too, they carry."""
    appended = features.append(made, features.targets[rows], features.source_index[rows])
    partners, share = features.partner_targets, features.target_weight
    if partners is None or share is None:
        return appended
    return replace(
        appended,
        partner_targets=torch.cat([partners, partners[rows]]),
        target_weight=torch.cat([share, share[rows]]),
    )
