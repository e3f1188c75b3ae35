"""The method `bcl`."""

from __future__ import annotations

from functools import partial
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from ltcore import Context, Features, ForExtraRows, Method, Options, hookimpl
from ltcore_bcl.functional import balanced_contrastive_loss
from ltcore_bcl.views import strong_view


class BCLOptions(Options):
    """Options of BCL; the defaults are those of the authors' code, for ImageNet-LT and iNaturalist 2018."""

    temperature: float = Field(default=0.07, gt=0.0)
    """T: what cosines are divided by. 0.1 on CIFAR."""
    weight: float = Field(default=0.35, ge=0.0)
    """What the contrastive loss is multiplied with. 0.6 on CIFAR."""
    classification_weight: float = Field(default=1.0, ge=0.0)
    """What the loss values of the batch's own rows are multiplied with. 2.0 on CIFAR."""
    hidden_dim: int | None = Field(default=None, ge=1)
    """Width of the hidden layer of both projections; by default that of the features. 512 on CIFAR."""
    embedding_dim: int = Field(default=1024, ge=1)
    """Width of the embeddings. 128 on CIFAR."""
    views: Literal["data", "strong"] = "strong"
    """What is done to the contrasted views: what the recipe's `data` does to every image, or crops of random area and
    colours behind that, as published. The batch itself is left alone."""
    smallest_crop: float = Field(default=0.08, gt=0.0, le=1.0)
    """Smallest share of the area of a strong view's crop. 0.2 on CIFAR."""
    blur: float = Field(default=0.0, ge=0.0, le=1.0)
    """How often a strong view is blurred. 0.5 on CIFAR."""


def projection(features: int, hidden: int, embedding: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear: [N, features] to [N, embedding]."""
    return nn.Sequential(
        nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, embedding)
    )


class BCL(Method[BCLOptions]):
    """Balanced contrastive learning (Zhu et al. 2022): two more views of each image, contrasted with class prototypes.

    Networks, made when the run starts: `of_features` embeds the views, `of_classes` makes prototypes of the
    classifier's weights.
    """

    interface = "1.1"
    requires = frozenset({"own_parameters_train", "one_network"})
    auxiliary = ("contrastive",)
    of_features: nn.Module
    of_classes: nn.Module

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make the networks."""
        (width,) = context.feature_shape("pooled")
        sizes = width, self.options.hidden_dim or width, self.options.embedding_dim
        self.of_features, self.of_classes = projection(*sizes), projection(*sizes)

    @hookimpl
    def extra_rows(self, indices: list[Tensor], generator: torch.Generator, context: Context) -> list[Tensor]:
        """The images of each batch twice more; each row has random changes of its own."""
        return [torch.cat([batch, batch]) for batch in indices]

    @hookimpl
    def image_transform(self, context: Context) -> ForExtraRows | None:
        """Strong changes for the views alone; None where they have the data's own."""
        options = self.options
        if options.views == "data":
            return None
        return ForExtraRows(partial(strong_view, smallest=options.smallest_crop, blur=options.blur))

    @hookimpl
    def sample_weights(self, values: Tensor, features: Features, context: Context) -> Tensor | None:
        """The classification loss's weight for each row, [N]; None where it is 1."""
        weight = self.options.classification_weight
        return None if weight == 1 else torch.full_like(values, weight)

    @hookimpl
    def auxiliary_losses(self, features: Features, logits: Tensor, context: Context) -> dict[str, Tensor]:
        """The balanced contrastive loss of the views, times its weight.

        Gradients reach the classifier's weights through the prototypes.
        """
        views = cast("Features", features.extra)
        embeddings = self.of_features(views.features)
        prototypes = self.of_classes(cast("Tensor", context.model.classifier.weight))
        # In bf16 a cosine is rounded to 1/256, and a temperature of 0.07 makes that 14 times as much.
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = normalize(embeddings.float(), dim=1), normalize(prototypes.float(), dim=1)
            loss = balanced_contrastive_loss(unit[0], views.targets, unit[1], self.options.temperature)
        return {"contrastive": self.options.weight * loss}
