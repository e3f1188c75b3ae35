"""The methods `rotation_prediction` and `moco`."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from ltcore_bcl import strong_view
from pydantic import Field
from torch import Tensor, nn

from ltcore import Batch, Context, Features, ForExtraRows, Method, Options, hookimpl
from ltcore_ssp.functional import balanced_turns, enqueue, follow, momentum_contrast_loss, turned


class RotationPrediction(Method):
    """Predicting image rotations (Gidaris et al. 2018): each image is turned once, and the network tells how.

    Made when the run starts: `head`, linear to the four rotations.
    """

    interface = "1.1"
    requires = frozenset({"one_network", "own_parameters_train", "single_images"})
    auxiliary = ("rotation",)
    head: nn.Module

    def __init__(self, options: Options | None = None) -> None:
        """Nothing is turned outside of a step."""
        super().__init__(options)
        self._turns = torch.zeros(0, dtype=torch.int64)  # of the step: from `mix_inputs` to `auxiliary_losses`

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make the head."""
        (width,) = context.feature_shape("pooled")
        self.head = nn.Linear(width, 4)

    @hookimpl
    def mix_inputs(self, batch: Batch, context: Context) -> Batch:
        """The batch with every image turned by 0, 90, 180 or 270 degrees, each of them as often."""
        chance = torch.rand(len(batch.targets), generator=context.generator, device=context.device)
        self._turns = balanced_turns(chance)
        return replace(batch, images=turned(batch.images, self._turns))

    @hookimpl
    def auxiliary_losses(self, features: Features) -> dict[str, Tensor]:
        """Cross-entropy of the four rotations, the mean over the batch's images."""
        rows = features.features[: len(self._turns)]  # those that others have appended stand behind them
        return {"rotation": F.cross_entropy(self.head(rows).float(), self._turns)}


class MoCoOptions(Options):
    """Options of momentum contrast; the defaults are those of SSP's code, for ImageNet-LT and iNaturalist 2018."""

    temperature: float = Field(default=0.2, gt=0.0)
    """T: what cosines are divided by."""
    momentum: float = Field(default=0.999, ge=0.0, le=1.0)
    """m: the share of its own parameters that the keys' network keeps in a step."""
    queue: int = Field(default=65536, ge=1)
    """K: keys of earlier batches that are contrasted with; fewer than training images."""
    embedding_dim: int = Field(default=128, ge=1)
    """Width of queries and keys."""
    hidden_dim: int | None = Field(default=None, ge=1)
    """Width of the hidden layer before them; by default that of the features."""
    negatives: Literal["all", "other_classes"] = "all"
    """Which of the queue a query is told apart from: all, without a look at labels, or only what is of another class
    (the first stage of SSD)."""
    views: Literal["both", "keys", "data"] = "both"
    """What is changed strongly, behind what the recipe's `data` does to every image: queries and keys; keys alone
    (SSD); or nothing."""
    smallest_crop: float = Field(default=0.2, gt=0.0, le=1.0)
    """Smallest share of the area of a strong view's crop."""
    blur: float = Field(default=0.5, ge=0.0, le=1.0)
    """How often a strong view is blurred."""
    group_size: int | None = Field(default=32, ge=2)
    """Keys that are normalised together: about so many, chosen by chance, so that the statistics of a batch do not give
    the positive away; by default as on one of several devices. `null` for the whole batch."""


def projection(features: int, hidden: int, embedding: int) -> nn.Sequential:
    """Linear, ReLU, linear (MoCo v2): [N, features] to [N, embedding]."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, embedding))


class MoCo(Method[MoCoOptions]):
    """Momentum contrast (He et al. 2020): two views of an image are told from images of earlier batches.

    Made when the run starts: `head` projects the batch's features to queries; `key_backbone` and `key_head` follow
    backbone and head and make keys. Buffers: the keys of earlier batches (`queue` [K, E]), their labels (`labels` [K],
    -1 where none has come yet), and where the oldest is (`pointer`).
    """

    interface = "1.1"
    checked_with: ClassVar = {"queue": 40, "embedding_dim": 8}
    requires = frozenset({"hard_labels", "one_network", "own_parameters_train"})
    auxiliary = ("contrast",)
    frozen = ("key_backbone.*", "key_head.*")
    head: nn.Module
    key_backbone: nn.Module
    key_head: nn.Module
    queue: Tensor
    labels: Tensor
    pointer: Tensor

    def __init__(self, options: MoCoOptions | None = None) -> None:
        """There are no views outside of a step."""
        super().__init__(options)
        self._views: Batch | None = None  # of the step: from `mix_inputs` to `auxiliary_losses`
        self._keys: Tensor | None = None  # of the step: from there to `after_step`

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make the networks and the queue."""
        (width,), options = context.feature_shape("pooled"), self.options
        self.head = projection(width, options.hidden_dim or width, options.embedding_dim)
        self.key_backbone, self.key_head = copy.deepcopy(context.model.backbone), copy.deepcopy(self.head)
        self.register_buffer("queue", torch.zeros(options.queue, options.embedding_dim))
        self.register_buffer("labels", torch.zeros(options.queue, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        """The keys' network begins as the queries' one, and the queue with random directions, of no class."""
        self.key_backbone.load_state_dict(context.model.backbone.state_dict())
        self.key_head.load_state_dict(self.head.state_dict())
        drawn = torch.randn(self.queue.shape, generator=context.generator, device=self.queue.device)
        self.queue.copy_(F.normalize(drawn, dim=1))
        self.labels.fill_(-1)
        self.pointer.zero_()

    @hookimpl
    def extra_rows(self, indices: list[Tensor]) -> list[Tensor]:
        """The images of each batch once more: the keys' views."""
        return indices

    @hookimpl
    def image_transform(self) -> partial[Tensor] | ForExtraRows | None:
        """Strong changes of both views or of the keys'; None where they have the data's own."""
        options = self.options
        strong = partial(strong_view, smallest=options.smallest_crop, blur=options.blur)
        if options.views == "data":
            return None
        return strong if options.views == "both" else ForExtraRows(strong)

    @hookimpl
    def mix_inputs(self, batch: Batch) -> Batch:
        """Take the keys' views out of the batch: they go through their own network."""
        self._views = batch.extra
        return replace(batch, extra=None)

    @hookimpl
    def auxiliary_losses(self, features: Features, context: Context) -> dict[str, Tensor]:
        """The contrast of each image's query with its key and the queue, the mean over the batch."""
        views, options = self._views, self.options
        assert views is not None  # there in every step
        rows = len(views.targets)  # those that others have appended stand behind them
        queries, keys = self.head(features.features[:rows]), self._embedded(views.images, context)
        spared = None
        if options.negatives == "other_classes":
            spared = features.targets[:rows, None] == self.labels
        # In bf16 a cosine is rounded to 1/256, and a temperature of 0.2 makes that five times as much.
        with torch.autocast(queries.device.type, enabled=False):
            self._keys = F.normalize(keys.float(), dim=1)
            unit = F.normalize(queries.float(), dim=1)
            return {"contrast": momentum_contrast_loss(unit, self._keys, self.queue, options.temperature, spared)}

    @torch.no_grad()
    def _embedded(self, images: Tensor, context: Context) -> Tensor:
        """Keys [N, E] before normalisation; batch norm takes each group of rows by itself."""
        rows, network = len(images), nn.Sequential(self.key_backbone, self.key_head)
        groups = max(rows // (self.options.group_size or rows), 1)
        order = torch.rand(rows, generator=context.generator, device=context.device).argsort()
        network.train()  # nothing of it trains, so core has left it in eval mode
        try:
            keys = torch.cat([network(images[group]) for group in order.tensor_split(groups)])
        finally:
            network.eval()
        return torch.empty_like(keys).index_copy_(0, order, keys)

    @hookimpl
    def after_step(self, context: Context) -> None:
        """The step's keys enter the queue, and the keys' network follows the other one."""
        views, keys = self._views, self._keys
        assert views is not None and keys is not None  # of this step
        enqueue(self.labels, self.pointer.clone(), views.targets)
        enqueue(self.queue, self.pointer, keys)
        for network, leader in ((self.key_backbone, context.model.backbone), (self.key_head, self.head)):
            follow(network.parameters(), leader.parameters(), self.options.momentum)
        self._views = self._keys = None
