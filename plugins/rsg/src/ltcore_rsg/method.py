"""RSG as a method: what is planned for a batch, the rows made at the tap, and the two losses that live there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltcore import Context, Features, Method, RecipeError, hookimpl, largest_classes
from ltcore_rsg.functional import (
    centre_loss,
    centre_shares,
    off_centre,
    paired_rows,
    repeats,
    same_class,
    vector_loss,
)
from ltcore_rsg.modules import Centres, PairNetwork, begin
from ltcore_rsg.options import RSGOptions


@dataclass(frozen=True)
class _Plan:
    """What is known of a batch before it is on the device.

    Attributes:
        size: B, its rows.
        heads: [M] int64 on the CPU, places of the head rows whose variation is used; none where no row is made.
        tails: [M] int64 on the CPU, places of the tail rows that get it.
    """

    size: int
    heads: Tensor
    tails: Tensor


class RSG(Method[RSGOptions]):
    """Rare-class sample generator: tail rows at a tap, varied as head rows vary around their centres.

    Made when the run starts: `centres`, the pair network `pairs`, and `transform`, which moves variation from head to
    tail. The buffer `trained` says whether a stage has trained them, `generated` whether rows were ever made: from then
    on the pair network stays as it is.
    """

    interface = "1.1"
    checked_with: ClassVar = {"start_epoch": 1}
    requires = frozenset({"hard_labels", "feature_maps"})
    auxiliary = ("cesc", "mv")
    centres: Centres
    pairs: PairNetwork
    transform: nn.Conv2d
    trained: Tensor
    generated: Tensor

    def __init__(self, options: RSGOptions | None = None) -> None:
        """Keep the options."""
        super().__init__(options)
        self.register_buffer("trained", torch.zeros((), dtype=torch.bool))
        self.register_buffer("generated", torch.zeros((), dtype=torch.bool))
        # Of the epoch, and found again in `extra_rows` by a run that goes on.
        self._plans: list[_Plan] = []
        self._pairs_learn = True

    @property
    def tap(self) -> str:
        """Where `augment_features` acts."""
        tap = self.options.tap
        return tap

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make centres and networks for the maps at the tap."""
        channels = context.feature_shape(self.tap)[0]
        self.centres = Centres(context.num_classes, channels, self.options.centres)
        self.pairs = PairNetwork(channels, self.options.pair_channels)
        self.transform = begin(nn.Conv2d(channels, channels, 3, padding=1))

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        """Refuse to make rows with what was never trained.

        Raises:
            RecipeError: neither this stage before `start_epoch` nor an earlier one trains it.
        """
        trains = any(parameter.requires_grad for parameter in self.parameters())
        if not trains and not bool(self.trained):
            raise RecipeError(
                f"stage '{context.stage}' does not train RSG's centres and networks, and no stage before did; name the "
                "method in the stage's trainable: [backbone, classifier, rsg]"
            )
        if self.options.start_epoch == 0 and not bool(self.trained):
            raise RecipeError(
                f"start_epoch 0 leaves stage '{context.stage}' no epoch in which centres and the pair network learn "
                "before rows are made with them, and no stage before trained them; set start_epoch to 1 or more"
            )
        self.trained.fill_(True)

    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        """Remember that rows are made."""
        if context.epoch >= self.options.start_epoch:
            self.generated.fill_(True)

    @hookimpl
    def extra_rows(self, indices: list[Tensor], context: Context) -> None:
        """No rows of its own: here the batches' labels are known on the CPU, and so which rows will be paired."""
        self._pairs_learn = not bool(self.generated)
        is_head = largest_classes(context.class_counts.cpu(), self.options.head_ratio)
        masks = [is_head[context.training_targets[batch]] for batch in indices]
        numbers = self._made(masks) if context.epoch >= self.options.start_epoch else [0] * len(masks)
        self._plans = [_Plan(len(mask), *paired_rows(mask, made)) for mask, made in zip(masks, numbers, strict=True)]

    def _made(self, masks: list[Tensor]) -> list[int]:
        """How many rows are made for each batch; `paired_rows` makes none where head or tail rows are missing."""
        strength = self.options.strength
        counts = [(int(mask.sum()), len(mask)) for mask in masks]
        if self.options.rows == "batch":
            return [_rows(head, size - head, strength) for head, size in counts]
        head, size = sum(head for head, _ in counts), sum(size for _, size in counts)
        share = _rows(head, size - head, strength) / size
        return [max(1, round(share * size)) for _, size in counts]

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        """The rows, behind them the made ones with their tail row's label, and both terms of the loss.

        Everything is computed from features without gradient: no loss of RSG reaches the backbone before the tap.

        Raises:
            RecipeError: rows of the batch are missing.
        """
        plan = self._plans[context.step]
        if len(features.targets) < plan.size:
            raise RecipeError(
                f"the batch at '{self.tap}' has {len(features.targets)} rows where the sampler drew {plan.size}; does "
                "another method drop rows before RSG in this stage?"
            )
        options = self.options
        maps, targets = features.features[: plan.size].detach(), features.targets[: plan.size]
        learned = self.centres
        shares = centre_shares(maps.mean((2, 3)), learned.weight, learned.bias, targets)
        cesc, mv = centre_loss(maps, learned.centres, shares, targets), maps.new_zeros((), dtype=torch.float32)
        if self._pairs_learn and plan.size > 1:
            half = plan.size // 2
            logits = self.pairs(maps[:half], maps[half : 2 * half])
            cesc = cesc + F.cross_entropy(logits.float(), same_class(targets))
        if len(plan.heads):
            heads, tails = (rows.to(maps.device, non_blocking=True) for rows in (plan.heads, plan.tails))
            made, mv = self._generate(maps, targets, shares.detach(), heads, tails)
            features = features.append(made.to(maps.dtype), targets[tails], features.source_index[tails])
        return features.with_losses(context.name, cesc=cesc * options.cesc_weight, mv=mv * options.mv_weight)

    def _generate(
        self, maps: Tensor, targets: Tensor, shares: Tensor, heads: Tensor, tails: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Made maps [M, D, H, W] and L_MV, 0-d; both train `transform` alone."""
        around = off_centre(maps, self.centres.centres.detach(), shares, targets)
        variation = around[heads]
        moved = self.transform(variation)
        logits = self.pairs.as_constant(maps[heads], moved).float()
        different = F.cross_entropy(logits, torch.zeros_like(heads))
        return maps[tails] + moved, different + vector_loss(moved, variation, around[tails], self.options.vectors)


def _rows(head: int, tail: int, strength: float) -> int:
    """The rows that the published code makes of so many head and tail rows."""
    return repeats(head, tail, strength) * min(head, tail) if head and tail else 0
