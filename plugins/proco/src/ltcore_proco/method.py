"""The method `proco`."""

from __future__ import annotations

from functools import partial
from typing import Literal, cast

import torch
from ltcore_bcl import projection, strong_view
from ltcore_logit_adjustment import adjusted_logits, class_log_prior
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ltcore import Context, DataError, Features, ForExtraRows, Method, Options, hookimpl
from ltcore_proco.functional import LEAST_WIDTH, concentrations, contrast_logits, running_means

#: Length of the means of classes that were not seen yet; the authors'.
_UNSEEN = 0.9


class ProCoOptions(Options):
    """Options of ProCo; the defaults are those of the authors' code, for ImageNet-LT and iNaturalist 2018."""

    temperature: float = Field(default=0.07, gt=0.0)
    """T: what similarities are divided by. 0.1 on CIFAR."""
    weight: float = Field(default=1.0, ge=0.0)
    """What the contrastive loss is multiplied with, the paper's alpha."""
    hidden_dim: int | None = Field(default=None, ge=1)
    """Width of the projection's hidden layer; by default that of the features. 512 on CIFAR."""
    embedding_dim: int = Field(default=1024, ge=LEAST_WIDTH)
    """Width of the embeddings. 128 on CIFAR."""
    views: Literal["data", "strong"] = "strong"
    """What is done to the contrasted views: what the recipe's `data` does to every image, or crops of random area and
    colours behind that, as published. The batch itself is left alone."""
    smallest_crop: float = Field(default=0.08, gt=0.0, le=1.0)
    """Smallest share of the area of a strong view's crop."""
    blur: float = Field(default=0.0, ge=0.0, le=1.0)
    """How often a strong view is blurred."""


class ProCo(Method[ProCoOptions]):
    """Probabilistic contrastive learning (Du et al. 2024): two more views of each image, see `contrast_logits`.

    Attributes:
        of_features: the network that embeds the views, made when the run starts.
        means: [C, E], of the epoch before and this one; `seen` [C] is how many embeddings they are of.
        next_means: [C, E], of this epoch alone, with which the next one begins; `next_seen` [C] likewise.
    """

    interface = "1.1"
    requires = frozenset({"own_parameters_train", "one_network"})
    auxiliary = ("contrastive",)
    of_features: nn.Module
    log_prior: Tensor
    means: Tensor
    seen: Tensor
    next_means: Tensor
    next_seen: Tensor

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        """Make the network, and the means of the classes as buffers.

        Raises:
            DataError: a class has no training images.
        """
        try:
            self.register_buffer("log_prior", class_log_prior(context.class_counts))
        except ValueError as error:
            raise DataError(f"method '{context.name}': {error}") from error
        (width,) = context.feature_shape("pooled")
        self.of_features = projection(width, self.options.hidden_dim or width, self.options.embedding_dim)
        for name in ("means", "next_means"):
            self.register_buffer(name, self._unseen(context))
        for name in ("seen", "next_seen"):
            self.register_buffer(name, torch.zeros(context.num_classes, device=context.device))

    def _unseen(self, context: Context) -> Tensor:
        """Means of classes that were not seen yet, [C, E], in random directions."""
        shape, device = (context.num_classes, self.options.embedding_dim), context.device
        return _UNSEEN * normalize(torch.randn(shape, generator=context.generator, device=device), dim=1)

    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        """Take over the means of the epoch before, and begin new ones."""
        self.means.copy_(self.next_means)
        self.seen.copy_(self.next_seen)
        self.next_means.copy_(self._unseen(context))
        self.next_seen.zero_()

    @hookimpl
    def extra_rows(self, indices: list[Tensor]) -> list[Tensor]:
        """The images of each batch twice more; each row has random changes of its own."""
        return [torch.cat([batch, batch]) for batch in indices]

    @hookimpl
    def image_transform(self) -> ForExtraRows | None:
        """Strong changes for the views alone; None where they have the data's own."""
        options = self.options
        if options.views == "data":
            return None
        return ForExtraRows(partial(strong_view, smallest=options.smallest_crop, blur=options.blur))

    @hookimpl
    def auxiliary_losses(self, features: Features) -> dict[str, Tensor]:
        """Cross-entropy of the views' contrast with every class, shifted by the classes' shares, times its weight."""
        views = cast("Features", features.extra)
        embeddings = self.of_features(views.features)
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = normalize(embeddings.float(), dim=1)
            self._learn(unit.detach(), views.targets)
            logits = contrast_logits(unit, *concentrations(self.means), self.options.temperature)
            loss = cross_entropy(adjusted_logits(logits, self.log_prior), views.targets)
        return {"contrastive": self.options.weight * loss}

    @torch.no_grad()
    def _learn(self, embeddings: Tensor, targets: Tensor) -> None:
        """Add the views to both means of their classes."""
        for means, seen in ((self.means, self.seen), (self.next_means, self.next_seen)):
            moved, more = running_means(means, seen, embeddings, targets)
            means.copy_(moved)
            seen.copy_(more)
