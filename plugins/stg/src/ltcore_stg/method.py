"""STG as a method: it learns in a stage where its generator trains, and augments in one where it is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ltcore import (
    Context,
    DataError,
    Features,
    Method,
    Options,
    RecipeError,
    ReportTable,
    Stage,
    hookimpl,
    largest_classes,
    nearest_classes,
)
from ltcore_stg.functional import (
    augmented,
    class_strength,
    cycled,
    divergences,
    last_alike,
    partly_kept,
    places_to_fill,
    smoothed,
    statistics_loss,
    transformation_statistics,
)
from ltcore_stg.generator import StatisticsGenerator

#: Samples of one class whose transformations a report compares; five in the paper.
_SHOWN_SAMPLES = 5


class STGOptions(Options):
    """Options of STG; the paper's where it gives one."""

    head_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the classes, the largest ones, that are the head: the generator learns from them. The rest is
    augmented."""
    memory: int = Field(default=1200, ge=0)
    """m: features of recent head samples that are kept to estimate statistics with; 0 leaves the batch alone."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """How much of a sample's statistics is kept when it is visited again. 0 keeps nothing, and needs no memory."""
    statistics_dtype: Literal["float32", "float16"] = "float32"
    """In what the statistics of the head samples are kept: two numbers for each sample and channel."""
    hidden: int | None = Field(default=None, ge=1)
    """Width of the generator's hidden layers; by default that of the features."""
    strength: float = Field(default=1.5, ge=0)
    """lambda: scale of the augmentation, for the smallest class; that of class y is ``sqrt(n_min / n_y)`` times it."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """t: share of the channels that are changed. 0 changes nothing."""
    mean: Literal["use", "drop"] = "use"
    """Whether a transformation is drawn around the mean that the generator predicts, as equation 3 prints it, or around
    nothing (mu = 0). The predicted mean leads towards the mean of a head class."""


class STG(Method[STGOptions]):
    """Tail features moved by transformations that a generator, trained on the head, predicts for each of them.

    Modules: `generator`. Buffers, made in `on_run_start`: `head`, `token`, `strength` [C], `means` [H, D] of the head
    classes, the dictionary (`queue` [m, D], `queue_labels`, `queue_sources` [m], `pointer`), the statistics of each of
    the n head images (`statistics` [n + 1, 2, D], `seen` [n + 1], `place` [N]; the last row is nobody's), `trained`.
    """

    interface = "1.0"
    requires = frozenset({"hard_labels", "one_network"})
    auxiliary = ("statistics",)
    head: Tensor
    token: Tensor
    strength: Tensor
    means: Tensor
    queue: Tensor
    queue_labels: Tensor
    queue_sources: Tensor
    pointer: Tensor
    statistics: Tensor
    seen: Tensor
    place: Tensor
    trained: Tensor

    def check_stage(self, stage: Stage) -> None:
        """Refuse a stage without classification in which the generator cannot train, and learning from single images.

        Raises:
            RecipeError: only backbone or classifier train, and nothing gives them a loss; or the generator trains and
                its batch norm would have no variance to take from a batch.
        """
        learning = any(p.split(".")[0] not in ("backbone", "classifier") for p in stage.trainable)
        if learning and stage.batch_size < 2:
            raise RecipeError("batch_size 1 gives the generator's batch norm no variance; use at least 2")
        if not stage.classification and not learning:
            raise RecipeError(
                "without classification the generator is what trains; name the method in the stage's trainable"
            )

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make the generator and the buffers.

        Raises:
            DataError: there is one class only, so no tail.
        """
        options, device, counts = self.options, context.device, context.class_counts
        try:
            head = largest_classes(counts, options.head_fraction)
        except ValueError as error:
            raise DataError(f"method 'stg': {error}; use data with at least two classes") from error
        number, (dim,) = int(head.sum()), context.feature_shape("pooled")
        self.generator = StatisticsGenerator(dim, number, options.hidden or dim)
        self.register_buffer("head", head)
        self.register_buffer("token", torch.where(head, head.cumsum(0) - 1, 0))
        self.register_buffer("strength", options.strength * class_strength(counts))
        self.register_buffer("means", torch.zeros(number, dim, device=device))
        self.register_buffer("queue", torch.zeros(options.memory, dim, device=device))
        self.register_buffer("queue_labels", torch.full((options.memory,), -1, device=device))
        self.register_buffer("queue_sources", torch.full((options.memory,), -1, device=device))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64, device=device))
        of_head = head.cpu()[context.training_targets] & bool(options.momentum)
        images = int(of_head.sum())
        self.register_buffer("place", torch.where(of_head, of_head.cumsum(0) - 1, images).to(device))
        kept = getattr(torch, options.statistics_dtype)
        self.register_buffer("statistics", torch.zeros(images + 1, 2, dim, dtype=kept, device=device))
        self.register_buffer("seen", torch.zeros(images + 1, dtype=torch.bool, device=device))
        self.register_buffer("trained", torch.zeros((), dtype=torch.bool, device=device))

    @property
    def learning(self) -> bool:
        """Whether the generator trains in this stage."""
        return any(parameter.requires_grad for parameter in self.generator.parameters())

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        """Forget other stages' features where the generator will learn; keep the head's class means where it will not.

        Raises:
            RecipeError: the generator is to augment, and no stage has trained it.
        """
        if self.learning:
            self.trained.fill_(True)
            self.queue_labels.fill_(-1)
            self.pointer.zero_()
            self.seen.zero_()
            return
        if not bool(self.trained):
            raise RecipeError(
                f"stage '{context.stage}' would augment with a generator that no stage has trained; before it, put a "
                "stage with classification: false whose methods and trainable name the method"
            )
        self.means.copy_(context.class_means()[self.head])

    @hookimpl
    def augment_features(self, features: Features, context: Context) -> Features:
        """Tail rows moved by a transformation drawn from their own distribution; head rows as they are.

        Rows that another method made are left alone. Gradients pass through to the features, not to the generator.
        """
        if self.learning or self.options.threshold == 0:
            return features
        x = features.features
        tail = ~self.head[features.targets] & ~features.synthetic
        with torch.autocast(x.device.type, enabled=False):
            rows = x.float()
            mean, variance = self._generate(rows.detach())
            noise = torch.randn(x.shape, generator=context.generator, device=x.device)
            uniform = torch.rand(x.shape, generator=context.generator, device=x.device)
            moved = augmented(rows, mean, variance, noise, self.strength[features.targets]).to(x.dtype)
        changed = torch.where(tail[:, None], partly_kept(x, moved, uniform, self.options.threshold), x)
        return replace(features, features=changed, synthetic=features.synthetic | tail)

    def reported(self, classes: Sequence[int], context: Context) -> list[ReportTable]:
        """How different the transformations of samples of one tail class are (table 5); nothing before it augments.

        The class is the first of `classes` that is augmented and has `_SHOWN_SAMPLES` images, else the largest one.
        """
        if self.learning:
            return []
        counts, targets = context.class_counts, context.training_targets
        tail = [label for label in torch.argsort(counts, descending=True, stable=True).tolist() if not self.head[label]]
        enough = [label for label in (*(c for c in classes if c in tail), *tail) if counts[label] >= _SHOWN_SAMPLES]
        label = enough[0] if enough else tail[0]
        own = torch.nonzero(targets == label)[:, 0]
        own = own[torch.randperm(len(own), generator=context.cpu_generator)[:_SHOWN_SAMPLES]]
        rows = context.model.backbone(context.images("train", own)).float()
        every = torch.ones(len(self.means), dtype=torch.bool, device=rows.device)
        nearest, _ = nearest_classes(rows, self.means, every, 1, "cosine")
        found = divergences(*self._generate(rows))
        heads = torch.nonzero(self.head)[:, 0][nearest[:, 0]].tolist()
        names = [f"sample {number}" for number in range(1, len(own) + 1)]
        body = [[name, *row] for name, row in zip(names, found.tolist(), strict=True)]
        text = (
            "KL divergence of the Gaussian that the generator predicts for the sample of a row from that for the "
            f"sample of a column, for {len(own)} training images of class number {label}, which has "
            f"{int(counts[label])}. In the last row, the number of the head class whose mean is nearest: samples with "
            "the same one should differ less (STG, table 5)."
        )
        last = ["nearest head class", *map(str, heads)]
        return [ReportTable("KL divergence of predicted transformations", text, ["", *names], [*body, last])]

    @torch.no_grad()
    def _generate(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (0 if dropped) and variance [N, D] of float32 rows, each with the token of the nearest head class."""
        self.generator.eval()  # also in a stage with batch_norm: adapt, which is meant for the backbone's
        every = torch.ones(len(self.means), dtype=torch.bool, device=rows.device)
        token, _ = nearest_classes(rows, self.means, every, 1, "cosine")
        mean, variance = self.generator(rows, token[:, 0])
        return torch.zeros_like(mean) if self.options.mean == "drop" else mean, variance

    @hookimpl
    def auxiliary_losses(self, features: Features) -> dict[str, Tensor]:
        """The regression of the head rows' statistics; 0 where the generator is frozen."""
        if not self.learning:
            return {"statistics": torch.zeros((), device=features.features.device)}
        with torch.autocast(features.features.device.type, enabled=False):
            rows, targets = features.features.detach().float(), features.targets
            wanted = self.head[targets] & ~features.synthetic
            mean, std, counted = self._targets(rows, targets, features.source_index, wanted)
            # The batch norm shall see head rows only, and as many in every step: the first of them fill up the others.
            index = cycled(wanted)
            guess, variance = self.generator(rows[index], self.token[targets[index]])
            counted = counted[index] & (torch.arange(len(wanted), device=rows.device) < wanted.sum())
            return {"statistics": statistics_loss(guess, variance, mean[index], std[index], counted)}

    @torch.no_grad()
    def _targets(self, rows: Tensor, targets: Tensor, sources: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Smoothed mean and deviation [B, D] of float32 rows, and which rows have them [B]; updates the buffers."""
        labels = torch.where(wanted, targets, -1)
        mean, variance, number = transformation_statistics(
            rows,
            labels,
            sources,
            torch.cat([rows, self.queue]),
            torch.cat([labels, self.queue_labels]),
            torch.cat([sources, self.queue_sources]),
        )
        counted = number > 0
        self._push(rows, labels, sources, wanted)
        if self.options.momentum == 0:
            return mean, variance.sqrt(), counted
        place = torch.where(counted, self.place[sources], len(self.seen) - 1)
        seen, momentum = self.seen[place], self.options.momentum
        old_mean, old_std = self.statistics[place].float().unbind(1)
        mean = smoothed(old_mean, mean, seen, momentum)
        # Kept as a deviation, which float16 holds over a wider range than a variance.
        std = smoothed(old_std.square(), variance, seen, momentum).sqrt()
        # An image that the batch holds twice has the same value written twice, so that the order does not matter.
        value = torch.where(counted[:, None, None], torch.stack([mean, std], 1), 0)[last_alike(place)]
        self.statistics.index_copy_(0, place, value.to(self.statistics.dtype))
        self.seen.index_copy_(0, place, counted)
        return mean, std, counted

    def _push(self, rows: Tensor, labels: Tensor, sources: Tensor, wanted: Tensor) -> None:
        """Put the wanted rows into the dictionary, over the oldest ones."""
        if not self.options.memory:
            return
        filled, row, pointer = places_to_fill(wanted, self.pointer, self.options.memory)
        self.queue.copy_(torch.where(filled[:, None], rows[row], self.queue))
        self.queue_labels.copy_(torch.where(filled, labels[row], self.queue_labels))
        self.queue_sources.copy_(torch.where(filled, sources[row], self.queue_sources))
        self.pointer.copy_(pointer)
